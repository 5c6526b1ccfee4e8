"""Whether cheaper localizers say what exact tracing says: rank correlation over layers, fact by fact.

For each fact, Spearman's correlation over layers of a localizer's values with the fact's trace, and whether the two
name layers close to each other. Traces of all facts are much alike, so that a localizer which knows only the common
shape agrees well with any of them: beside each number stands what the traces of the other facts of the same relation
give (`dealt`, as in pipeline.analysis.layers), and `permutation_pvalue`, the exact test of whether a fact's own trace
does better (Hemerik and Goeman 2018, as in pipeline.analysis.inference). Both say nothing of which of the two is right.
"""

from collections.abc import Mapping
from math import factorial, prod

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.analysis.inference import MIN_DEALINGS, dealings
from pipeline.analysis.layers import traces
from pipeline.analysis.profiles import Resampling, mean_interval
from pipeline.analysis.scores import trace_measures
from pipeline.tables import NUMBER, TEXT, WHOLE

LOCALIZERS = {"fact_id": TEXT, "localizer": TEXT, "layer": WHOLE, "value": NUMBER}  # data/localizers.parquet
CLOSE = (1, 2)  # blocks
AGREEMENT_COLUMNS = (
    "localizer", "trace", "rho", "rho_low", "rho_high", "rho_dealt", "permutation_pvalue",
    *(f"hit_{k}{end}" for k in CLOSE for end in ("", "_dealt")), "n_facts", "n_layers",
)  # fmt: skip

_Floats = NDArray[np.float64]
_DIGITS = 12  # values that agree to so many of the fact's largest are tied
_TIE = 1e-9
_ENOUGH = 6  # facts of one relation that can be dealt in more than MIN_DEALINGS ways


def by_name(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Localizer to its rows fact_id, layer and value, in the table's order: as `layers.layer_table` takes them."""
    rows = table.groupby("localizer", sort=False)
    return {str(name): group[["fact_id", "layer", "value"]].reset_index(drop=True) for name, group in rows}


def exact(trace: pd.DataFrame, measures: list[str] | tuple[str, ...]) -> dict[str, pd.DataFrame]:
    """The same of exact tracing, from trace.parquet, by names such as `trace_mlp_w5_fraction`, at every layer."""
    by_layer = trace_measures(trace).rename(columns={"module": "trace_module", "window": "trace_window"})
    return traces(by_layer, measures)


def agreement_table(
    localizers: Mapping[str, pd.DataFrame],
    traced: Mapping[str, pd.DataFrame],
    relation: "pd.Series[str]",
    plan: Resampling,
) -> pd.DataFrame:
    """A row for each localizer and variant of exact tracing, in their order.

    Parameters
    ----------
    localizers, traced : by name, tables with a row per fact and layer, columns fact_id, layer and value.
    relation : of each fact, by fact_id.
    plan : how facts are resampled and traces dealt.

    Returns
    -------
    DataFrame with the columns AGREEMENT_COLUMNS. rho: mean over facts of the rank correlation over layers, with its
    bootstrap interval by facts. hit_k: share of facts whose two largest values are within k blocks (of tied layers, the
    lowest). rho_dealt, hit_k_dealt: the mean with the traces of the other facts of a fact's relation (of all other
    facts, where it has none). permutation_pvalue: share of dealings of traces within relations whose mean correlation
    is as high, NaN where there are too few ways to deal. A fact with a value missing, or all of them alike, has no
    ranks and is left out; n_facts counts the others. A pair of fewer than two facts or layers has no row.
    """
    rows = []
    for name, values in localizers.items():
        for of, exactly in traced.items():
            one, other = (
                table.pivot(index="fact_id", columns="layer", values="value").sort_index().sort_index(axis=1)
                for table in (values, exactly)
            )
            one, other = one.align(other, join="inner")
            ranked = _ranks(one), _ranks(other)
            there = ~(np.isnan(ranked[0]).any(1) | np.isnan(ranked[1]).any(1))
            if there.sum() >= 2 and one.shape[1] >= 2:
                groups = np.unique(relation[one.index[there]].to_numpy(str), return_inverse=True)[1].astype(np.int64)
                layers = one.columns.to_numpy(np.int64)
                row = _row(ranked[0][there], ranked[1][there], layers, groups, plan)
                rows.append({"localizer": name, "trace": of} | row)
    return pd.DataFrame(rows, columns=list(AGREEMENT_COLUMNS)).astype({"n_facts": "int64", "n_layers": "int64"})


def _ranks(table: pd.DataFrame) -> _Floats:
    """Ranks over layers of each fact, of mean 0 and length 1, (F, L); NaN for facts that have none."""
    values = table.to_numpy(np.float64)
    scale = np.abs(values).max(1, keepdims=True, initial=0)
    values = np.round(values / np.where(scale > 0, scale, 1), _DIGITS)
    ranks = np.where(np.isnan(values).any(1, keepdims=True), np.nan, rankdata(values, axis=1))
    ranks = ranks - ranks.mean(1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.where(length > 0, ranks / np.where(length > 0, length, 1), np.nan)


def _row(
    one: _Floats, other: _Floats, layers: NDArray[np.int64], relation: NDArray[np.int64], plan: Resampling
) -> dict[str, object]:
    """The numbers of two localizers of F facts, given by their ranks (F, L)."""
    facts = np.arange(len(one))
    rho = one @ other.T  # fact f's localizer with fact g's trace
    apart = np.abs(layers[one.argmax(1)][:, None] - layers[other.argmax(1)])
    mean, low, high, _ = mean_interval(np.diag(rho)[:, None].copy(), plan)
    row: dict[str, object] = {"rho": mean[0], "rho_low": low[0], "rho_high": high[0], "n_facts": len(one)}
    others = relation[:, None] == relation
    others[others.sum(1) == 1] = True  # alone in its relation
    np.fill_diagonal(others, False)

    def dealt(values: _Floats) -> float:
        return float((np.where(others, values, 0).sum(1) / others.sum(1)).mean())

    row |= {"rho_dealt": dealt(rho), "permutation_pvalue": float("nan"), "n_layers": len(layers)}
    for k in CLOSE:
        near = (apart <= k).astype(np.float64)
        row |= {f"hit_{k}": float(np.diag(near).mean()), f"hit_{k}_dealt": dealt(near)}
    if prod(factorial(min(int(size), _ENOUGH)) for size in np.bincount(relation)) >= MIN_DEALINGS:
        means = rho[facts, dealings(relation, plan.permutations, plan.seed)].mean(1)
        row["permutation_pvalue"] = float((1 + (means >= mean[0] - _TIE).sum()) / (1 + len(means)))
    return row
