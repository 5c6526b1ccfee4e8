"""The layer question: does an edit do better at the layer that a fact's trace names than at one layer for all facts?

It is Hase et al. 2023's question in a practitioner's terms: the trace of a fact is known before it is edited, its
scores are not. For each fact, its score at
(a) traced: the layer with the fact's largest value of a localizer;
(b) fixed: the layer with the highest mean score over all other facts (`chosen_layers`: none is chosen on the fact
    that is scored there);
(c) best: the fact's own best layer, chosen on the very scores that it is judged by: a bound that nobody reaches, and
    optimistic by construction;
(d) random: the mean over layers;
and, since traces of most facts may point to the same good layers, (e) dealt: the mean over the layers that the traces
of the other facts of its relation name. Where a trace tells nothing of its own fact, traced is dealt but for chance,
and `permutation_pvalue` is the exact test of that (Hemerik and Goeman 2018, as in pipeline.analysis.inference). Where
it has nothing to do with layers either, both are random.

All choices of a fact are from the same layers: those where the method acts, the edit has a score and the localizer a
value. Of tied layers the lowest is taken: a trace that is 0 at every layer names the lowest, which is not a random one.
docs/statistics.md says what the intervals rest on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import factorial, prod

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.analysis.collapse import once
from pipeline.analysis.comparison import chosen_layers, interval_at_chosen
from pipeline.analysis.inference import MIN_DEALINGS, dealings, permutation_pvalue
from pipeline.analysis.profiles import Resampling, mean_interval, one_row_a_layer

CHOICES = ("traced", "fixed", "best", "random", "dealt")
WITHIN = (1, 2, 5)  # blocks
LAYER_COLUMNS = (
    "method", "problem", "score", "localizer", "choice", "mean", "low", "high", "regret", "regret_low", "regret_high",
    *(f"hit_{k}" for k in WITHIN), "n_facts", "layer", "permutation_pvalue",
)  # fmt: skip

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_Truths = NDArray[np.bool_]

_DIGITS = 12  # values that agree to so many are tied, as in `chosen_layers`
_ENOUGH = 6  # facts of one relation that can be dealt in more than MIN_DEALINGS ways


def layer_table(
    scores: pd.DataFrame,
    scores_list: Sequence[str],
    localizers: Mapping[str, pd.DataFrame],
    plan: Resampling,
    *,
    keep_null_layers: bool,
) -> pd.DataFrame:
    """Five rows, one a choice, per method, problem, score and localizer, in their order.

    Parameters
    ----------
    scores : scores.parquet.
    scores_list : columns of it.
    localizers : by name, tables with a row per fact and layer, columns fact_id, layer (the edited one, counted from 0)
        and value, the larger the more the fact is said to be there; `traces` makes those of causal tracing.
    plan : how facts are resampled and traces dealt.
    keep_null_layers : whether layers where the method cannot act may be chosen.

    Returns
    -------
    DataFrame with the columns LAYER_COLUMNS. mean, low, high: of the score over facts, with its bootstrap interval by
    facts. regret: the choice's mean less that of `traced`, so above 0 where tracing loses, with its interval from
    paired facts; 0 on the row `traced`. In both intervals of `fixed` its layers are chosen anew in each resample
    (`interval_at_chosen`); `dealt` has none, as its facts share their traces. hit_k: share of facts whose layer is
    within k blocks of the fact's best layer, the nearest where several are; on the row `random` what a layer drawn at
    random would hit. layer: the one that is chosen for most facts, the lowest such. permutation_pvalue stands on the
    row `dealt`: the share of dealings of traces within relations whose mean is as high as that of `traced`, NaN where
    there are too few ways to deal. A method, problem, score and localizer with fewer than two facts that share a layer
    has no rows.

    Raises
    ------
    UserError
        Where a fact has two rows for one layer, as with two edit windows in one table.
    """
    rows = []
    for (method, problem), group in once(scores).groupby(["method", "problem"], sort=False):
        one_row_a_layer(group)
        chosen = group if keep_null_layers else group[group["acts"]]
        relation = chosen.drop_duplicates("fact_id").set_index("fact_id")["relation"]
        for score in scores_list:
            wide = chosen.pivot(index="fact_id", columns="layer", values=score).sort_index().sort_index(axis=1)
            for name, table in localizers.items():
                values = table.pivot(index="fact_id", columns="layer", values="value")
                grid = lay_out(wide, values.reindex(index=wide.index, columns=wide.columns), relation)
                if grid is not None:
                    names = {"method": method, "problem": problem, "score": score, "localizer": name}
                    rows += [names | row for row in answer(grid, plan)]
    table = pd.DataFrame(rows, columns=list(LAYER_COLUMNS))
    return table.astype({"n_facts": "int64", "layer": "Int64"})


def traces(scores: pd.DataFrame, measures: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The localizers that causal tracing gives, named as `trace_mlp_w5_fraction`, from the columns of `scores`."""
    found = {}
    for (module, window), group in scores.groupby(["trace_module", "trace_window"], sort=False):
        rows = group.drop_duplicates(["fact_id", "layer"])
        for measure in measures:
            columns = rows[["fact_id", "layer", measure]]
            found[f"trace_{module}_w{window}_{measure}"] = columns.set_axis(["fact_id", "layer", "value"], axis=1)
    return found


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Facts by layers: score, the localizer's value and `open`, where a fact may be edited, each (F, L).

    layers (L,) are block numbers in ascending order, fixed (F,) places among them: of the layer that is best for the
    other facts. relation (F,) numbers the facts' relations from 0.
    """

    score: _Floats
    value: _Floats
    open: _Truths
    layers: _Ints
    fixed: _Ints
    relation: _Ints


def lay_out(score: pd.DataFrame, value: pd.DataFrame, relation: "pd.Series[str]") -> Grid | None:
    """The grid of tables facts by layers with the same labels, NaN where missing; None with fewer than two facts.

    A fact that shares no open layer with another one is left out: no layer can be chosen on other facts for it.
    """
    there = score.notna() & value.notna()
    there = there[(there & (there.sum() > 1)).any(axis=1)]
    if len(there) < 2:
        return None
    score, value = score.loc[there.index], value.loc[there.index]
    layers = score.columns.to_numpy(dtype=np.int64)
    return Grid(
        score=score.to_numpy(dtype=np.float64),
        value=np.round(value.to_numpy(dtype=np.float64), _DIGITS),
        open=there.to_numpy(dtype=np.bool_),
        layers=layers,
        fixed=np.searchsorted(layers, chosen_layers(score.where(there))).astype(np.int64),
        relation=np.unique(relation[there.index].to_numpy(str), return_inverse=True)[1].astype(np.int64),
    )


def answer(grid: Grid, plan: Resampling) -> list[dict[str, object]]:
    """The rows of one grid, from `choice` on, in the order of CHOICES."""
    facts = np.arange(len(grid.score))
    score = np.where(grid.open, grid.score, -np.inf)
    is_best = grid.open & (np.round(score, _DIGITS) == np.round(score.max(1, keepdims=True), _DIGITS))
    pattern, named = named_layers(grid)
    place = {"traced": named[pattern, facts], "fixed": grid.fixed, "best": is_best.argmax(1)}
    taken = {choice: grid.score[facts, at] for choice, at in place.items()}
    taken["random"] = _mean_open(grid.score, grid.open)
    taken["dealt"] = _dealt(grid.score, pattern, named, grid.relation)
    values = np.column_stack([taken[choice] for choice in CHOICES])
    mean, low, high, _ = mean_interval(values, plan)
    regret, regret_low, regret_high, _ = mean_interval(values - values[:, :1], plan)
    fixed = CHOICES.index("fixed")
    both = np.stack([grid.score, grid.score - taken["traced"][:, None]])
    _, lows, highs = interval_at_chosen(np.where(grid.open, grid.score, np.nan), both, plan)
    low[fixed], high[fixed] = np.clip([lows[0], highs[0]], 0, 1)  # where all scores are
    regret_low[fixed], regret_high[fixed] = lows[1], highs[1]
    hits = {}
    for k in WITHIN:
        near = is_best @ (np.abs(grid.layers[:, None] - grid.layers) <= k)  # (F, L)
        hit = {choice: float(near[facts, at].mean()) for choice, at in place.items()}
        hit["random"] = float(_mean_open(near.astype(np.float64), grid.open).mean())
        hit["dealt"] = float(_dealt(near.astype(np.float64), pattern, named, grid.relation).mean())
        hits[k] = hit
    rows: list[dict[str, object]] = []
    for i, choice in enumerate(CHOICES):
        row: dict[str, object] = {"choice": choice, "mean": mean[i], "regret": regret[i], "n_facts": len(facts)}
        if choice != "dealt":
            row |= {"low": low[i], "high": high[i], "regret_low": regret_low[i], "regret_high": regret_high[i]}
        else:
            row["permutation_pvalue"] = _pvalue(grid, pattern, named, plan)
        row |= {f"hit_{k}": hits[k][choice] for k in WITHIN}
        row["layer"] = _commonest(grid.layers[place[choice]]) if choice in place else pd.NA
        rows.append(row)
    return rows


def named_layers(grid: Grid) -> tuple[_Ints, _Ints]:
    """Which place the trace of each fact names among the layers that are open to another fact.

    Returns
    -------
    pattern : (F,), which of the P sets of open layers a fact has; mostly there is one.
    named : (P, F), for each such set, the place with the largest value of each fact's trace.
    """
    sets, pattern = np.unique(grid.open, axis=0, return_inverse=True)
    # Lower than any value, and yet above layers that are not open: a trace with no value there names the lowest.
    value = np.where(np.isnan(grid.value), np.finfo(np.float64).min, grid.value)
    named = np.stack([np.where(open_to, value, -np.inf).argmax(1) for open_to in sets])
    return pattern.reshape(-1).astype(np.int64), named.astype(np.int64)


def _mean_open(values: _Floats, is_open: _Truths) -> _Floats:
    """Mean of each row over its open layers: (F,)."""
    return np.where(is_open, values, 0).sum(1) / is_open.sum(1)


def _dealt(values: _Floats, pattern: _Ints, named: _Ints, relation: _Ints) -> _Floats:
    """For each fact, its mean value at the layers that the traces of others of its relation name; (F,).

    A fact that is alone in its relation gets those of all other facts.
    """
    sizes, result = np.bincount(relation), np.empty(len(values))
    for fact, own in enumerate(relation):
        others = relation == own if sizes[own] > 1 else np.ones(len(values), dtype=np.bool_)
        others[fact] = False
        result[fact] = values[fact, named[pattern[fact], others]].mean()
    return result


def _pvalue(grid: Grid, pattern: _Ints, named: _Ints, plan: Resampling) -> float:
    """Share of dealings of traces within relations whose mean score is as high as with each fact's own trace."""
    ways = prod(factorial(min(int(size), _ENOUGH)) for size in np.bincount(grid.relation))
    if ways < MIN_DEALINGS:
        return float("nan")
    facts = np.arange(len(grid.score))
    orders = dealings(grid.relation, plan.permutations, plan.seed)
    dealt = np.array([grid.score[facts, named[pattern, order]].mean() for order in orders])
    return permutation_pvalue(float(grid.score[facts, named[pattern, facts]].mean()), dealt)


def _commonest(layers: _Ints) -> int:
    found, counts = np.unique(layers, return_counts=True)
    return int(found[counts.argmax()])
