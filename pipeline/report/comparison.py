"""The report's section on methods side by side."""

from typing import Any

import pandas as pd

from pipeline.analysis.comparison import COMPARED
from pipeline.analysis.trust import MIN_FACTS_OF_MEANS
from pipeline.report.plots import words
from pipeline.report.section import Section, Table, with_interval
from pipeline.words import method_label


def section(table: pd.DataFrame) -> dict[str, Any]:
    """What the page says of `pipeline.analysis.comparison.comparison_table`: its rows, none where there is one method
    only, and whether their intervals are of enough facts to be printed (`intervals`); those of too few are None.
    """
    if table["method"].nunique() < 2:
        return {"rows": [], "intervals": False}
    few = table["n_facts"] < MIN_FACTS_OF_MEANS
    shown = table.copy()
    for score in COMPARED:
        withheld = table["n_reverse"] < MIN_FACTS_OF_MEANS if score == "reverse" else few
        for end in (f"{score}_low", f"{score}_high"):
            shown[end] = table[end].astype(object).mask(withheld, None)
    return {"rows": shown.to_dict("records"), "intervals": not few.all(), "least": MIN_FACTS_OF_MEANS}


def sections(told: dict[str, Any], confidence: str) -> list[Section]:
    """What `section` found as a section of the page; none where there is one method only."""
    if not told["rows"]:
        return []
    intervals = (
        f", {confidence} bootstrap intervals by facts in brackets, without correction for the number of rows"
        if told["intervals"]
        else f"; intervals are not given, as below {told['least']} facts they miss the mean too often"
    )
    table = Table(
        title="Methods side by side",
        head=["problem", "method", "facts", "layer", *COMPARED, "collapsed"],
        rows=[_cells(row) for row in told["rows"]],
        note="**layer**: the one chosen for most facts, counted from 0, and of how many chosen for some fact. "
        "**reverse**: whether the edit's object leads back to the subject, over the facts of relations with a natural "
        "inverse; no part of **overall**. "
        "**collapsed**: share of these edits that disable the model.",
        source="methods.csv",
        filters=(0, 1),
    )
    return [
        Section(
            anchor="methods",
            title="Methods side by side",
            paragraphs=[
                "Each method where it does best: each fact is scored at the layer whose mean overall score over all "
                "other facts is the highest, so that no layer is chosen on the fact that it is scored on. Means over "
                f"facts{intervals}."
            ],
            tables=[table],
        )
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    chosen = f" (of {row['layers_chosen']})" if row["layers_chosen"] > 1 else ""
    scores = [with_interval(row[score], row[f"{score}_low"], row[f"{score}_high"]) for score in COMPARED]
    return [
        words(row["problem"]), method_label(row["method"]), str(row["n_facts"]), f"{row['layer']}{chosen}", *scores,
        f"{row['collapsed']:.0%}",
    ]  # fmt: skip
