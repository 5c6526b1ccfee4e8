"""What Hase et al. 2023 draw by layer, as tables: traces, where they peak, scores, and how both go together."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.analysis.collapse import once
from pipeline.analysis.profiles import NEGLIGIBLE, Resampling, mean_interval
from pipeline.analysis.regression import MIN_FACTS
from pipeline.analysis.scores import rewrite_by_layer_table, trace_by_layer_table

SHOWN = ("rewrite", "paraphrase", "neighborhood", "overall")
PEAK_LINES = {"any": None, "last_subject": "last_subject"}  # of which tokens the largest effect is, and their role

_Floats = NDArray[np.float64]


def by_layer_tables(
    scores: pd.DataFrame,
    trace: pd.DataFrame,
    scores_list: Sequence[str],
    trace_measures: Sequence[str],
    plan: Resampling,
    *,
    keep_null_layers: bool,
) -> dict[str, pd.DataFrame]:
    """All tables by layer, by the names of their CSV files, from scores.parquet and trace.parquet."""
    return {
        "rewrite_by_layer": rewrite_by_layer_table(scores, plan),
        "trace_by_layer": trace_by_layer_table(trace, plan),
        "scores_by_layer": scores_by_layer_table(scores, plan),
        "trace_peaks": trace_peaks_table(trace),
        "correlation_by_layer": correlation_table(
            scores, scores_list, trace_measures, keep_null_layers=keep_null_layers
        ),
    }


def scores_by_layer_table(scores: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """Mean scores by edited layer, over facts: columns method, problem, score, layer, mean, low, high, n.

    The scores are those of SHOWN, in that order within a method and problem; one that no fact has is left out.
    """
    tables = []
    for (method, problem), group in once(scores).groupby(["method", "problem"], sort=False):
        for score in SHOWN:
            if not group[score].notna().any():
                continue
            wide = group.pivot(index="fact_id", columns="layer", values=score).sort_index().sort_index(axis=1)
            mean, low, high, n = mean_interval(wide.to_numpy(float), plan)
            names = {"method": method, "problem": problem, "score": score, "layer": wide.columns.to_numpy()}
            tables.append(pd.DataFrame(names | {"mean": mean, "low": low, "high": high, "n": n}))
    columns = ["method", "problem", "score", "layer", "mean", "low", "high", "n"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def trace_peaks_table(trace: pd.DataFrame) -> pd.DataFrame:
    """At which layer facts have their largest tracing effect: columns module, window, tokens, layer, facts, share, n.

    A row for each layer, also where no fact peaks. tokens: "any" (the largest over all tokens of the prompt) or
    "last_subject". A fact with no effect above 0 there has no peak; n counts those that have one, `share` is of them.
    Of tied layers the lowest is taken.
    """
    tables = []
    for (module, window), group in trace.groupby(["module", "window"], sort=True):
        layers = np.sort(group["layer"].unique())
        for tokens, role in PEAK_LINES.items():
            chosen = group if role is None else group[group["token_role"] == role]
            if chosen.empty:
                continue
            effect = chosen.groupby(["fact_id", "layer"])["effect"].max().unstack("layer").reindex(columns=layers)
            effect = effect[effect.max(axis=1) > 0]
            facts = effect.idxmax(axis=1).value_counts().reindex(layers, fill_value=0).to_numpy()
            names = {"module": module, "window": window, "tokens": tokens, "layer": layers}
            tables.append(
                pd.DataFrame(names | {"facts": facts, "share": facts / max(len(effect), 1), "n": len(effect)})
            )
    return pd.concat(tables, ignore_index=True)


def correlation_table(
    scores: pd.DataFrame, scores_list: Sequence[str], trace_measures: Sequence[str], *, keep_null_layers: bool
) -> pd.DataFrame:
    """Pearson's correlation over facts of score and trace in each layer.

    Returns
    -------
    DataFrame with the columns method, problem, score, trace_module, trace_window, trace_measure, layer, r, n: the
    correlation, NaN with fewer than MIN_FACTS facts or where the score or the trace does not vary, and the number of
    facts. keep_null_layers: whether layers have rows where the method cannot act.
    """
    tables = []
    variant = ["method", "problem", "trace_module", "trace_window"]
    for (method, problem, module, window), every in scores.groupby(variant, sort=False):
        group = every if keep_null_layers else every[every["acts"]]
        for score in scores_list:
            for measure in trace_measures:
                rows = group.dropna(subset=[score, measure])
                y, x = (
                    rows.pivot(index="fact_id", columns="layer", values=name).sort_index(axis=1)
                    for name in (score, measure)
                )
                r, n = correlations(x.to_numpy(float), y.to_numpy(float))
                names = {"method": method, "problem": problem, "score": score, "trace_module": module}
                names |= {"trace_window": window, "trace_measure": measure}
                tables.append(pd.DataFrame(names | {"layer": x.columns.to_numpy(), "r": r, "n": n}))
    return pd.concat(tables, ignore_index=True)


def correlations(x: _Floats, y: _Floats) -> tuple[_Floats, NDArray[np.int64]]:
    """Correlation of each column of x with that of y, both (F, L) and NaN at the same places, and the rows it is of."""
    n = (~np.isnan(x)).sum(0)
    dx, dy = (np.nan_to_num(one - np.nansum(one, axis=0) / np.maximum(n, 1)) for one in (x, y))
    xx, yy, xy = (dx**2).sum(0), (dy**2).sum(0), (dx * dy).sum(0)
    sizes = [np.nan_to_num(np.abs(one)).max(0, initial=0) for one in (x, y)]
    varies = [np.sqrt(ss / np.maximum(n, 1)) > NEGLIGIBLE * size for ss, size in zip((xx, yy), sizes, strict=True)]
    known = varies[0] & varies[1] & (n >= MIN_FACTS)
    r = np.where(known, xy / np.sqrt(np.where(known, xx * yy, 1)), np.nan)
    return np.clip(r, -1, 1), n
