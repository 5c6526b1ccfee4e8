"""reports/metrics.json: the numbers that DVC compares experiments by."""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import pandas as pd

from pipeline.report.answer import headline

_METRICS = (
    "r2_layer", "r2_trace", "r2_both", "r2_diff", "chance", "gain", "gain_low", "gain_high", "gain_bound",
    "permutation_pvalue", "within_slope", "within_pvalue", "cv_gain", "n_facts",
)  # fmt: skip


def metrics(
    regressions: pd.DataFrame,
    scores: pd.DataFrame,
    facts: pd.DataFrame,
    edit_counts: pd.DataFrame,
    targets: pd.DataFrame,
) -> dict[str, Any]:
    """Numbers for reports/metrics.json, nested by method and problem; undefined ones are left out.

    R² of the headline regressions, and of the mean rewrite score over facts its best layer (counted from 0),
    the value there, and its mean over layers; of targets the share that are function words. `edit_counts` comes from
    `pipeline.analysis.scores.count_edits`, `targets` from `pipeline.analysis.targets`.
    """
    once = scores.drop_duplicates(["method", "problem", "fact_id", "window", "layer"])
    scored = int(edit_counts.loc[edit_counts["reason"] == "", "edits"].sum())
    result: dict[str, Any] = {
        "facts": {"candidates": len(facts), "used": int(facts["kept"].sum())},
        "edits": _numbers(
            {
                "scored": scored,
                "left_out": int(edit_counts["edits"].sum()) - scored,
                "collapsed": once["collapsed"].sum() if once["text_loss_post"].notna().any() else math.nan,
            }
        ),
        "function_word_targets": _numbers(dict(zip(targets["problem"], targets["share"], strict=True))),
    }
    for (method, problem), group in once.groupby(["method", "problem"], sort=False):
        by_layer = group.groupby("layer")["rewrite"].mean().dropna()
        if len(by_layer):
            numbers = {"best": by_layer.max(), "best_layer": by_layer.idxmax(), "mean": by_layer.mean()}
            result.setdefault(str(method), {})[str(problem)] = {"rewrite": _numbers(numbers)}
    for row in headline(regressions).to_dict("records"):
        of_problem = result.setdefault(str(row["method"]), {}).setdefault(str(row["problem"]), {})
        of_problem[f"{row['score']}_r2"] = _numbers({name.removeprefix("r2_"): row[name] for name in _METRICS})
    return result


def _numbers(values: Mapping[str, Any]) -> dict[str, float | int]:
    """Plain numbers for JSON; NaN left out, floats at ten significant digits."""
    return {
        name: int(value) if isinstance(value, Integral) else float(f"{value:.10g}")
        for name, value in values.items()
        if not math.isnan(value)
    }
