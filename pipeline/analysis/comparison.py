"""Methods side by side: what each scores where it does best, at a layer chosen on other facts.

The best of many layers looks better than it is on the facts that made it the best. So each fact is scored at the layer
whose mean overall score over all other facts is the highest, the lowest such layer where several are.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.analysis.collapse import once
from pipeline.analysis.profiles import Resampling, interval, resamples, with_ends

COMPARED = ("rewrite", "paraphrase", "neighborhood", "overall", "reverse")
COMPARISON_COLUMNS = (
    "method", "problem", "n_facts", "layer", "layers_chosen",
    *(f"{score}{end}" for score in COMPARED for end in ("", "_low", "_high")), "n_reverse", "collapsed",
)  # fmt: skip

_Floats = NDArray[np.float64]


def comparison_table(scores: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """One row per problem and method, in the order of `scores` (of `with_harm`).

    Returns
    -------
    DataFrame with the columns COMPARISON_COLUMNS. layer: the one that is chosen for most facts, counted from 0;
    layers_chosen: how many different ones are; means over facts with bootstrap intervals by facts, in which the layers
    are chosen anew (`interval_at_chosen`), cut to [0, 1]; collapsed: share of these edits that disable the model;
    n_reverse: of these facts, those with a reverse score.
    n_facts counts facts with an overall score at some layer; a problem for which a method has fewer than two such facts
    has no row, as there are then no others to choose a layer on.
    """
    rows = []
    for (problem, method), group in once(scores).groupby(["problem", "method"], sort=False):
        wide = group.pivot(index="fact_id", columns="layer", values="overall").dropna(how="all")
        if len(wide) < 2:
            continue
        layers = chosen_layers(wide)
        taken = group.set_index(["fact_id", "layer"]).loc[list(zip(wide.index, layers, strict=True))]
        cells = [group.pivot(index="fact_id", columns="layer", values=score).loc[wide.index] for score in COMPARED]
        stacked = np.stack([cell.to_numpy(dtype=np.float64) for cell in cells])
        mean, low, high = interval_at_chosen(wide.to_numpy(dtype=np.float64), stacked, plan)
        values: dict[str, float] = {}
        for named in zip(COMPARED, mean, np.clip(low, 0, 1), np.clip(high, 0, 1), strict=True):
            values |= with_ends(*named)
        most = int(pd.Series(layers).mode().iloc[0])
        fixed = (method, problem, len(wide), most, len(set(layers)))
        collapsed = {"n_reverse": int(taken["reverse"].notna().sum()), "collapsed": float(taken["collapsed"].mean())}
        rows.append(dict(zip(COMPARISON_COLUMNS[:5], fixed, strict=True)) | values | collapsed)
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def chosen_layers(wide: pd.DataFrame) -> list[int]:
    """For each fact, a row of scores by layer (facts, layers), the layer with the highest mean over the other facts."""
    values = wide.to_numpy(dtype=np.float64)
    return [int(wide.columns[place]) for place in _chosen(values, np.ones(len(values)))[0]]


def interval_at_chosen(chosen_by: _Floats, values: _Floats, plan: Resampling) -> tuple[_Floats, _Floats, _Floats]:
    """Mean over facts of what each has at its chosen layer, and an interval that knows that the layer was chosen.

    With other facts, other layers would be chosen. So each resample of facts chooses anew, for each fact on all that
    are not copies of it. A resample scatters more than the facts that it is drawn from and so finds a better best
    layer than there is: only the spread of the resampled means is used, about the mean that was found.

    Parameters
    ----------
    chosen_by : scores by which layers are chosen, shape (F, L), NaN where missing.
    values : what is averaged, K of them, shape (K, F, L), NaN where missing.
    plan : its samples, confidence and seed.

    Returns
    -------
    Mean, low and high, each of shape (K,); NaN where there is nothing to average, the interval also with fewer than two
    facts.
    """
    count, kinds = len(chosen_by), len(values)
    facts = np.arange(count)

    def means(weights: _Floats) -> _Floats:
        places, able = _chosen(chosen_by, weights)
        taken = values[:, facts, places]  # (K, F)
        weight = np.where(np.isnan(taken), 0, weights * able)
        total = weight.sum(1)
        return np.where(total > 0, (weight * np.nan_to_num(taken)).sum(1) / np.where(total > 0, total, 1), np.nan)

    mean = means(np.ones(count))
    low, high = np.full(kinds, np.nan), np.full(kinds, np.nan)
    if count < 2:
        return mean, low, high
    again = np.array([means(weights) for weights in resamples(count, plan)])  # (B, K)
    n = (~np.isnan(values[:, facts, _chosen(chosen_by, np.ones(count))[0]])).sum(1)
    for kind in np.flatnonzero(n >= 2):
        held = again[~np.isnan(again[:, kind]), kind]
        if len(held):
            low[kind], high[kind] = mean[kind] + np.array(interval(held - held.mean(), int(n[kind]), plan.confidence))
    return mean, low, high


def _chosen(values: _Floats, weights: _Floats) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For each fact the place of the layer with the highest mean over the others, and whether there is one; (F,) each.

    values (F, L), NaN where missing; weights (F,): how often each fact is there. A fact is only scored where it has a
    score itself, and of equal layers the first is taken.
    """
    known = np.isfinite(values)
    filled, weight = np.where(known, values, 0), weights[:, None]
    others = weights @ known - weight * known  # (F, L)
    able = known & (others > 0)
    means: _Floats = np.where(able, (weights @ filled - weight * filled) / np.maximum(others, 1), -np.inf)
    places: NDArray[np.int64] = np.round(means, 12).argmax(1)
    return places, np.asarray(able.any(axis=1))
