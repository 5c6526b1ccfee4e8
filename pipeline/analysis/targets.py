"""What the edits were to make the model say: how many of a problem's targets are function words.

The noised answer of tracing reversal is the first word of a greedy continuation, as in the published code, and that is
often an article: an edit towards it says little of the fact.
"""

import pandas as pd

from pipeline.words import is_function_word


def function_word_targets(edits: pd.DataFrame) -> pd.DataFrame:
    """One row per problem, in the order of `edits`, the edits tables of all methods and problems.

    Returns
    -------
    DataFrame with the columns problem; facts, how many were edited (those that the problem dropped are left out);
    function_words, how many of these have a function word as their target; share, the one over the other; and examples,
    those words, the most frequent first.
    """
    edited = edits[~edits["status"].str.startswith("dropped")].drop_duplicates(["problem", "fact_id"])
    rows = []
    for problem, group in edited.groupby("problem", sort=False):
        found = group.loc[group["target"].map(is_function_word), "target"].value_counts()
        rows.append(
            {
                "problem": problem,
                "facts": len(group),
                "function_words": int(found.sum()),
                "share": found.sum() / len(group),
                "examples": ", ".join(found.index),
            }
        )
    return pd.DataFrame(rows, columns=["problem", "facts", "function_words", "share", "examples"])
