"""What the page says of the linear model: how many scores are at their ends, and what a model that stays there finds.

Of `pipeline.analysis.fractional`, beside the same numbers of least squares, for the regressions of the answer.
"""

from typing import Any

import pandas as pd

from pipeline.analysis.fractional import CEILING, FLOOR
from pipeline.analysis.regression import REGRESSION_COLUMNS
from pipeline.analysis.trust import MIN_FACTS_OF_SLOPES
from pipeline.report.answer import headline
from pipeline.report.plots import words
from pipeline.report.section import Table, number, with_interval
from pipeline.words import method_label

_KEYS = list(REGRESSION_COLUMNS[:6])


def tables(fractional: pd.DataFrame, regressions: pd.DataFrame, confidence: str) -> list[Table]:
    """One folded table, a row a problem; none where the tables have no regression in common. confidence: as text."""
    rows = _joined(fractional, regressions)
    if rows.empty:
        return []
    few = (rows["n_facts"] < MIN_FACTS_OF_SLOPES).any()
    first = rows.iloc[0]
    what = f"{words(str(first['score']))} score, {method_label(str(first['method']))}"
    note = (
        "Linear: least squares, as everywhere else on this page. Logit: a fractional logit (Papke and Wooldridge "
        "1996), whose fitted scores stay between 0 and 1; its R² is of the fitted means, and is the linear one for the "
        "layer alone. **slope**: the change of the score for a trace higher by 1 at another layer of the same fact, "
        "mean over rows; facts of all relations share the layers' means here, so that it is not the slope **within a "
        "fact** of the regressions. Where a cell is empty, the last column says why."
    )
    if few:
        note += f" Below {MIN_FACTS_OF_SLOPES} facts no interval is given."
    return [
        Table(
            title=f"Straight lines against a model that stays between 0 and 1: {what}",
            head=[
                "problem", f"{CEILING:g} or more", f"{FLOOR:g} or less", "layer", "linear", "logit", "logit, by chance",
                "linear", f"logit{'' if few else f' ({confidence} interval)'}", "facts", "empty as",
            ],
            groups=[("", 1), ("share of scores", 2), ("R²", 1), ("added by the trace", 3), ("slope", 2), ("", 2)],
            rows=[_cells(row) for row in rows.to_dict("records")],
            note=note,
            source="fractional.csv",
            folded=True,
        )
    ]  # fmt: skip


def sentence(fractional: pd.DataFrame, regressions: pd.DataFrame) -> list[str]:
    """A point for the page's list: how many scores are at an end, and whether the two models agree."""
    rows = _joined(fractional, regressions)
    if rows.empty:
        return []
    ends = (rows["at_floor"] + rows["at_ceiling"]) * 100
    both = rows.dropna(subset=["r2_diff", "r2_diff_linear"])
    told = (
        f"Scores are bounded: {_span(ends, 0)}% of the {words(str(rows['score'].iloc[0]))} scores of a problem are "
        f"within {FLOOR:g} of 0 or 1, where a straight line fits badly."
    )
    if both.empty:
        return [f"{told} A model that stays between 0 and 1 could not be fitted to any problem."]
    apart = (both["r2_diff"] - both["r2_diff_linear"]).abs().max() * 100
    lacking = len(rows) - len(both)
    left_out = f" (it could not be fitted to {lacking} of {len(rows)} problems)" if lacking else ""
    return [
        f"{told} A fractional logit, which stays between 0 and 1, finds the trace to add "
        f"{_span(both['r2_diff'] * 100, 1)} points of R² where straight lines find "
        f"{_span(both['r2_diff_linear'] * 100, 1)}; for no problem are the two "
        f"more than {apart:.1f} points apart{left_out}."
    ]


def _joined(fractional: pd.DataFrame, regressions: pd.DataFrame) -> pd.DataFrame:
    """The headline's rows of both tables, the regressions' r2_diff as r2_diff_linear."""
    linear = headline(regressions)[[*_KEYS, "r2_diff"]].rename(columns={"r2_diff": "r2_diff_linear"})
    return linear.merge(fractional, on=_KEYS)


def _cells(row: dict[str, Any]) -> list[str]:
    low, high = (row["ame_low"], row["ame_high"]) if row["n_facts"] >= MIN_FACTS_OF_SLOPES else (None, None)
    return [
        words(str(row["problem"])), f"{row['at_ceiling']:.0%}", f"{row['at_floor']:.0%}",
        *(number(row[name]) for name in ("r2_layer", "r2_diff_linear", "r2_diff", "chance", "linear_slope")),
        with_interval(row["ame"], low, high), str(row["n_facts"]), row["note"] or "–",
    ]  # fmt: skip


def _span(values: "pd.Series[float]", digits: int) -> str:
    low, high = (f"{round(value, digits) + 0:.{digits}f}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"
