"""Methods side by side: what each scores where it does best, at a layer chosen on other facts.

The best of many layers looks better than it is on the facts that made it the best. So each fact is scored at the layer
whose mean overall score over all other facts is the highest, the lowest such layer where several are.
"""

import numpy as np
import pandas as pd

from pipeline.analysis.collapse import once
from pipeline.analysis.profiles import Resampling, mean_interval

COMPARED = ("rewrite", "paraphrase", "neighborhood", "overall")
COMPARISON_COLUMNS = (
    "method", "problem", "n_facts", "layer", "layers_chosen",
    *(f"{score}{end}" for score in COMPARED for end in ("", "_low", "_high")), "collapsed",
)  # fmt: skip


def comparison_table(scores: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """One row per problem and method, in the order of `scores` (of `with_harm`).

    Returns
    -------
    DataFrame with the columns COMPARISON_COLUMNS. layer: the one that is chosen for most facts, counted from 0;
    layers_chosen: how many different ones are; means over facts with bootstrap intervals by facts; collapsed: share of
    these edits that disable the model. n_facts counts facts with an overall score at some layer; a problem for which a
    method has fewer than two such facts has no row, as there are then no others to choose a layer on.
    """
    rows = []
    for (problem, method), group in once(scores).groupby(["problem", "method"], sort=False):
        wide = group.pivot(index="fact_id", columns="layer", values="overall").dropna(how="all")
        if len(wide) < 2:
            continue
        layers = chosen_layers(wide)
        taken = group.set_index(["fact_id", "layer"]).loc[list(zip(wide.index, layers, strict=True))]
        means = zip(COMPARED, *mean_interval(taken[list(COMPARED)].to_numpy(dtype=np.float64), plan)[:3], strict=True)
        values = {
            name: float(value)
            for score, *three in means
            for name, value in zip((score, f"{score}_low", f"{score}_high"), three, strict=True)
        }
        most = int(pd.Series(layers).mode().iloc[0])
        fixed = (method, problem, len(wide), most, len(set(layers)))
        collapsed = {"collapsed": float(taken["collapsed"].mean())}
        rows.append(dict(zip(COMPARISON_COLUMNS[:5], fixed, strict=True)) | values | collapsed)
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def chosen_layers(wide: pd.DataFrame) -> list[int]:
    """For each fact, a row of scores by layer (facts, layers), the layer with the highest mean over the other facts."""
    values = wide.to_numpy(dtype=np.float64)
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0).sum(0), known.sum(0)
    chosen = []
    for row, has in zip(np.where(known, values, 0), known, strict=True):
        others = counts - has
        means = np.where(others > 0, (sums - row) / np.maximum(others, 1), -np.inf)
        means = np.where(has, means, -np.inf)  # where this fact has no score, it cannot be scored
        chosen.append(int(wide.columns[int(np.argmax(np.round(means, 12)))]))
    return chosen
