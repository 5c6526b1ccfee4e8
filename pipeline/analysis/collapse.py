"""Edits that disable the model: how many there are, at which layers, and what R² is without them.

An edit has collapsed the model where it raises the loss of text that has nothing to do with it by more than
`edit.collapse_nats`. The failure is known of ROME (Gupta et al. 2024, "Rebuilding ROME"): the key that its update is
aimed at, the mean over context prefixes, and the key that it divides by, the bare prompt's, can be so far apart that
uT k is nearly 0 and the update huge. `key: mean` takes the first for both.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from pipeline.analysis.profiles import NEGLIGIBLE
from pipeline.analysis.regression import MIN_FACTS, Fit, fit_models

HARM = ("denominator", "update_norm", "text_loss_pre", "text_loss_post")
COLLAPSE_COLUMNS = (
    "method", "problem", "update_key", "layer", "n_edits", "n_collapsed", "text_loss_rise_mean", "text_loss_rise_max",
    "denominator_median", "denominator_least", "update_norm_max",
)  # fmt: skip
R2_COLUMNS = (
    "method", "problem", "score", "trace_module", "trace_window", "trace_measure", "n_rows", "n_collapsed",
    "r2_layer", "r2_both", "r2_layer_without", "r2_both_without",
)  # fmt: skip
_EDIT = ["fact_id", "problem", "method", "window", "layer"]


def with_harm(scores: pd.DataFrame, edits: pd.DataFrame, collapse_nats: float) -> pd.DataFrame:
    """`scores` (of `score_table`) with the columns HARM of its edits, and `collapsed`.

    collapse_nats: a rise of the text's loss above this, in nats a token, counts as collapsed. An edit whose text loss
    was not measured has not collapsed, as far as is known.
    """
    # A failed edit has a row for each prompt too, so any prompt's row will do.
    of_edit = edits.drop_duplicates(_EDIT)[[*_EDIT, *HARM]]
    rows = scores.merge(of_edit, on=_EDIT, how="left", validate="many_to_one")
    return rows.assign(collapsed=(rows["text_loss_post"] - rows["text_loss_pre"]) > collapse_nats)


def once(scores: pd.DataFrame) -> pd.DataFrame:
    """One row for each edit of `scores`, which has one for each trace variant as well."""
    return scores.drop_duplicates(_EDIT)


def collapse_table(scores: pd.DataFrame, edits: pd.DataFrame) -> pd.DataFrame:
    """One row per method, problem and layer, in the order of `scores` (of `with_harm`).

    Returns
    -------
    DataFrame with the columns COLLAPSE_COLUMNS. update_key: `key` of the method's settings, "" for a method without.
    n_edits: edits whose text loss was measured, n_collapsed: those of them that collapsed; rises of the loss in nats a
    token; denominator_least: the smallest in absolute value. What was not measured is NaN.
    """
    keys = edits.groupby(["method", "problem"])["update_key"].first()
    rows = []
    for (method, problem, layer), group in once(scores).groupby(["method", "problem", "layer"], sort=False):
        rise = (group["text_loss_post"] - group["text_loss_pre"]).dropna()
        denominator = group["denominator"].dropna()
        values = (
            method, problem, keys[method, problem], layer, len(rise), int(group["collapsed"].sum()),
            rise.mean(), rise.max(), denominator.median(), denominator.abs().min(), group["update_norm"].max(),
        )  # fmt: skip
        rows.append(dict(zip(COLLAPSE_COLUMNS, values, strict=True)))
    table = pd.DataFrame(rows, columns=list(COLLAPSE_COLUMNS))
    return table.sort_values(["method", "problem", "layer"], key=_in_order, kind="stable").reset_index(drop=True)


def _in_order(column: "pd.Series[object]") -> "pd.Series[object]":
    """Names by where they first occur, numbers as they are."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return column.map({name: i for i, name in enumerate(column.unique())})


def collapse_by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """`collapse_table` over all problems: columns method, layer, n_edits, n_collapsed and share, NaN without edits."""
    sums = table.groupby(["method", "layer"], sort=False)[["n_edits", "n_collapsed"]].sum().reset_index()
    return sums.assign(share=sums["n_collapsed"] / sums["n_edits"].where(sums["n_edits"] > 0))


def r2_without_collapsed(scores: pd.DataFrame, score: str, measure: str, *, keep_null_layers: bool) -> pd.DataFrame:
    """R² of score ~ C(layer) and score ~ C(layer) * trace, with and without the rows of collapsed edits.

    One row per method, problem, trace module and trace window, with the columns R2_COLUMNS; NaN where it is not
    defined, as in `regression_table`. n_collapsed: how many of the n_rows of the regression are of collapsed edits.
    """
    chosen = scores if keep_null_layers else scores[scores["acts"]]
    rows = []
    for names, group in chosen.groupby(["method", "problem", "trace_module", "trace_window"], sort=False):
        method, problem, module, window = names
        cells = group[["fact_id", "layer", "collapsed", score, measure]]
        cells = cells.set_axis(["fact_id", "layer", "collapsed", "score", "trace"], axis=1).dropna()
        whole, without = _fit(cells), _fit(cells[~cells["collapsed"]])
        values = (
            method, problem, score, module, window, measure, len(cells), int(cells["collapsed"].sum()),
            whole.r2_layer, whole.r2_both, without.r2_layer, without.r2_both,
        )  # fmt: skip
        rows.append(dict(zip(R2_COLUMNS, values, strict=True)))
    return pd.DataFrame(rows, columns=list(R2_COLUMNS))


def _fit(rows: pd.DataFrame) -> Fit:
    if rows["fact_id"].nunique() < MIN_FACTS or np.ptp(rows["score"]) <= NEGLIGIBLE:
        return Fit()
    return fit_models(rows)


def totals(table: pd.DataFrame) -> Mapping[str, int]:
    """How many edits' text was measured, and how many of these collapsed."""
    return {"measured": int(table["n_edits"].sum()), "collapsed": int(table["n_collapsed"].sum())}
