"""The report's section on both directions: whether an edit's object leads back to its subject."""

import pandas as pd

from pipeline.analysis.trust import MIN_FACTS_OF_MEANS
from pipeline.report.plots import facts_phrase, words
from pipeline.report.section import Section, Table, number, with_interval
from pipeline.words import method_label


def sections(table: pd.DataFrame) -> list[Section]:
    """The section on `pipeline.analysis.reverse.reverse_table`; none where no fact has a reverse prompt."""
    if table.empty:
        return []
    rows = []
    for row in table.to_dict("records"):
        few = row["n_facts"] < MIN_FACTS_OF_MEANS
        ends = (float("nan"),) * 2 if few else (row["reverse_low"], row["reverse_high"])
        rows.append(
            [
                f"{words(row['problem'])}, {method_label(row['method'])}", str(row["n_facts"]), _p(row["p_pre"]),
                _p(row["p_post"]), _p(row["p_baseline_pre"]), _p(row["p_baseline_post"]),
                with_interval(row["reverse"], *ends), number(row["rewrite"]),
            ]
        )  # fmt: skip
    shown = Table(
        title="The subject after a prompt about the object",
        head=["problem, method", "facts", "before", "after", "before", "after", "reverse", "rewrite"],
        groups=[("", 2), ("p(subject), target", 2), ("p(subject), other object", 2), ("score", 2)],
        rows=rows,
        note="Means over the facts of relations with a natural inverse, each edited at the layer whose mean overall "
        "score over all other facts is the highest. Target: the edit's. Other object: the one that it is compared "
        f"with, in error injection the true one. Intervals are given from {MIN_FACTS_OF_MEANS} facts on.",
        source="reverse.csv",
    )
    return [Section(anchor="reverse", title="Both directions", paragraphs=[_found(table)], tables=[shown])]


def _found(table: pd.DataFrame) -> str:
    first = table.iloc[0]
    who = f"{words(str(first['problem']))} with {method_label(str(first['method']))}"
    return (
        "After an edit of what follows the subject, does the new object lead back to the subject? For "
        f"{who}, over {facts_phrase(int(first['n_facts']))}, the probability of the subject after a prompt about the "
        f"edit's target is {_p(first['p_pre'])} before and {_p(first['p_post'])} after the edit: a "
        f"reverse score of {number(first['reverse'])}, where the rewrite score is {number(first['rewrite'])}. Many "
        "subjects share an object, so the probability is small even where the model knows the fact."
    )


def _p(value: float) -> str:
    """A probability; names of several tokens have small ones."""
    return number(value, 4) if value != value or value >= 1e-3 or value == 0 else f"{value:.1e}"
