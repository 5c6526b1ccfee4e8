"""The one exception for bad input: params, facts, models and tables that a person can put right."""


class UserError(Exception):
    """Bad input, told in one sentence: the file, key or fact, what was found, and what would be right.

    Stages print it as `error: <sentence>` on stderr and exit with status 2, without a traceback.
    """


def quoted(value: object, most: int = 80) -> str:
    """A value from a file as one short printable piece of a sentence, in quotes."""
    try:
        text = value if isinstance(value, str) else str(value)
    except (RecursionError, ValueError):  # nested without end; a number with thousands of digits
        return f"a {type(value).__name__}"
    return repr(text[:most]) + ("..." if len(text) > most else "")
