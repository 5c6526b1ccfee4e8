"""The one exception for bad input: params, facts, models and tables that a person can put right."""


class UserError(Exception):
    """Bad input, told in one sentence: the file, key or fact, what was found, and what would be right.

    Stages print it as `error: <sentence>` on stderr and exit with status 2, without a traceback.
    """
