"""Does the conclusion change with the settings? The main path's regressions, each with a setting that is not the run's.

A variation is of the trace (restored module and window, measure, noise, corruption and metric), of the edits, or of the
facts, chosen by something else than what is asked of them:
edited layers: edits at some of the layers only, such as the relative depths of another study, whose R² is to be set
    beside these: it depends on which layers are in it, as those where edits fail add to what the layer explains;
known facts: those of a stricter rule;
concentrated traces: those whose effect, floored at 0, lies most in the best `window` neighbouring layers (the share of
    its sum over layers): chosen on the trace alone, so it leaves the test of the trace against scores what it is;
successful edits: those whose best layer scores at least so much: chosen on the score itself, which takes out what
    varies between facts, so R² of the layer rises and that of a trace can only be found in what is left.

Each row has the numbers of reports/regressions.csv (pipeline.analysis.regression) and what editing at the traced layer
loses against one fixed layer (pipeline.analysis.layers). Many rows are many tests of much the same edits: `count_table`
says how many reject, how many would if traces had nothing to do with scores, and how often as many do when the traces
of a fact, in all variations together, are dealt to another fact of its relation (an exact test of all rows at once:
Hemerik and Goeman 2018, as in pipeline.analysis.inference).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.analysis.collapse import once
from pipeline.analysis.inference import dealings, dealt_r2_diff
from pipeline.analysis.layers import layer_table
from pipeline.analysis.profiles import profiles, r2_layer_and_diff
from pipeline.analysis.regression import MIN_FACTS, Design, adjusted, regress
from pipeline.analysis.scores import TRACE_MEASURES, trace_measures
from pipeline.analysis.trust import MIN_FACTS_SHOWN
from pipeline.errors import UserError
from pipeline.tables import NUMBER, OWN, TEXT, WHOLE

TRACED = {"variation": TEXT, "value": TEXT, "fact_id": TEXT, "layer": WHOLE} | dict.fromkeys(TRACE_MEASURES, NUMBER)
ROBUSTNESS_COLUMNS = (
    "method", "problem", "score", "edit_window", "variation", "value", "n_facts", "n_left_out", "n_relations",
    "r2_layer", "r2_layer_all", "r2_both", "r2_diff", "chance", "gain", "gain_low", "gain_high", "gain_bound",
    "dealt_low", "dealt_high", "permutation_pvalue", "permutation_holm", "within_slope", "within_low", "within_high",
    "within_pvalue", "cv_gain", "cv_gain_low", "cv_gain_high", "traced", "fixed", "regret", "regret_low",
    "regret_high",
)  # fmt: skip
COUNT_COLUMNS = (
    "confidence", "rows", "tests", "rejected", "expected", "rejected_holm", "joint_tests", "joint_rejected",
    "joint_expected", "joint_high", "joint_pvalue",
)  # fmt: skip
_REGRESSED = [
    name for name in ROBUSTNESS_COLUMNS[ROBUSTNESS_COLUMNS.index("n_relations") : ROBUSTNESS_COLUMNS.index("traced")]
    if name not in ("dealt_low", "dealt_high", "permutation_holm")
]  # fmt: skip
_EDIT = ["fact_id", "relation", "problem", "method", "window", "layer", "acts"]
_TIE = 1e-9

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which regressions: of `score` on `measure`, as the run's first ones are, and what is varied of them.

    measures: of traces. layers: of edits, or None. known: "greedy" for facts whose greedy answer is the object, or
    least probabilities of it. concentrated: share of the facts that is kept, or None; window: in how many layers.
    success: least score, or None.
    """

    score: str
    measure: str
    window: int
    measures: Sequence[str]
    layers: Sequence[int] | None
    known: Sequence[str | float]
    concentrated: float | None
    success: float | None


def by_layer(traces: pd.DataFrame) -> pd.DataFrame:
    """data/robustness.parquet, columns TRACED: of traces by token, told apart by variation and value, the measures."""
    names = ["variation", "value"]
    parts = [
        trace_measures(part).assign(variation=variation, value=value)
        for (variation, value), part in traces.groupby(names, sort=False)
    ]
    return pd.concat(parts, ignore_index=True)[list(TRACED)]


def robustness_table(
    scores: pd.DataFrame, traced: pd.DataFrame, facts: pd.DataFrame, asked: Asked, design: Design
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """reports/robustness.csv and, of `count_table`, reports/robustness_count.csv.

    Parameters
    ----------
    scores : scores.parquet.
    traced : data/robustness.parquet; the run's own traces are the variation OWN, and its facts those that count.
    facts : facts.parquet; which facts the model knows, and how well.
    asked, design : which regressions, on which rows, and how facts are resampled and traces dealt.

    Returns
    -------
    A row for each method, problem and variation, the run's own first, with the columns ROBUSTNESS_COLUMNS. edit_window:
    the number of blocks that an edit changes. n_left_out: facts of the run's own row that are not in this one. r2_layer
    to cv_gain_high: as in reports/regressions.csv; permutation_holm over the rows of MIN_FACTS_SHOWN facts or more.
    dealt_low, dealt_high: between them lies the gain of traces dealt to other facts of the relation in `confidence` of
    all dealings; NaN where there are too few. traced, fixed: mean score at the layer that a fact's trace names and at
    one layer chosen on other facts; regret: fixed less traced, with its interval. A choice of facts or of layers that
    leaves none out is no variation and has no row.

    Raises
    ------
    UserError
        Where no edited fact was traced.
    """
    edits = once(scores)[[*_EDIT, asked.score]]
    edits = edits[edits["fact_id"].isin(traced.loc[traced["variation"] == OWN, "fact_id"])]
    if edits.empty:
        raise UserError("data/robustness.parquet is of other facts than data/scores.parquet; run `make robustness`")
    rows, dealt = [], []
    for (method, problem), group in edits.groupby(["method", "problem"], sort=False):
        names = {"method": method, "problem": problem, "score": asked.score, "edit_window": int(group["window"].max())}
        own = 0.0
        for variation, value, measure, found in _variations(group, traced, facts, asked):
            row, of_dealings = _row(found, asked.score, measure, design)
            own = row["n_facts"] if variation == OWN else own
            rows.append(names | {"variation": variation, "value": value, "n_left_out": int(own - row["n_facts"])} | row)
            dealt.append(of_dealings)
    table = pd.DataFrame(rows, columns=[name for name in ROBUSTNESS_COLUMNS if name != "permutation_holm"])
    table["permutation_holm"] = adjusted(_tested(table), "holm")
    return table[list(ROBUSTNESS_COLUMNS)], count_table(table, dealt, design.plan.confidence)


def concentration(own: pd.DataFrame, window: int) -> "pd.Series[float]":
    """Share of each fact's effect, floored at 0, that lies in its best `window` neighbouring layers, by fact_id.

    own: rows fact_id, layer and effect. NaN where no restoration has an effect.
    """
    wide = own.pivot(index="fact_id", columns="layer", values="effect").sort_index(axis=1).clip(lower=0)
    sums = np.concatenate([np.zeros((len(wide), 1)), wide.to_numpy(np.float64).cumsum(1)], axis=1)
    width = min(window, wide.shape[1])
    best, whole = (sums[:, width:] - sums[:, :-width]).max(1), sums[:, -1]
    return pd.Series(np.where(whole > 0, best / np.where(whole > 0, whole, 1), np.nan), index=wide.index)


def _variations(
    edits: pd.DataFrame, traced: pd.DataFrame, facts: pd.DataFrame, asked: Asked
) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Variation, value, measure and rows of each regression of one method and problem, the run's own first."""

    def beside(traces: pd.DataFrame) -> pd.DataFrame:
        return edits.merge(traces.drop(columns=["variation", "value"]), on=["fact_id", "layer"], how="inner")

    of = {
        (str(variation), str(value)): part
        for (variation, value), part in traced.groupby(["variation", "value"], sort=False)
    }
    own = beside(of[OWN, ""])
    yield OWN, "", asked.measure, own
    for (variation, value), part in of.items():
        if variation != OWN:
            yield variation, value, asked.measure, beside(part)
    for measure in asked.measures:
        if measure != asked.measure:
            yield "measure", measure, measure, own
    scored = own.dropna(subset=[asked.score, asked.measure])
    at = own["layer"].isin(asked.layers or ())
    if at.any() and not at.all():
        yield "edited layers", f"{own.loc[at, 'layer'].nunique()} of {own['layer'].nunique()}", asked.measure, own[at]
    for variation, value, chosen in _choices(scored[scored["acts"]], of[OWN, ""], facts, asked):
        if not set(scored["fact_id"]) <= chosen:
            yield variation, value, asked.measure, own[own["fact_id"].isin(chosen)]


def _choices(
    scored: pd.DataFrame, own: pd.DataFrame, facts: pd.DataFrame, asked: Asked
) -> Iterator[tuple[str, str, set[str]]]:
    """Variation, value and the facts that it is about."""
    for rule in asked.known:
        known = facts["greedy_correct"] if isinstance(rule, str) else facts["p_true"] >= rule
        yield "known facts", rule if isinstance(rule, str) else f"p >= {rule:g}", set(facts.loc[known, "fact_id"])
    if asked.concentrated is not None:
        shares = concentration(own, asked.window)
        kept = shares[shares >= shares.quantile(1 - asked.concentrated)]
        yield "concentrated traces", f"top {asked.concentrated:.0%}", set(kept.index)
    if asked.success is not None:
        best = scored.groupby("fact_id")[asked.score].max()
        yield "successful edits", f"best >= {asked.success:g}", set(best[best >= asked.success].index)


@dataclass(frozen=True, kw_only=True)
class _Dealt:
    """What traces add to R² in one row: the sample's own, and when dealt within relations, (B,); of which facts."""

    facts: tuple[str, ...]
    observed: float
    values: _Floats


def _row(rows: pd.DataFrame, score: str, measure: str, design: Design) -> tuple[dict[str, float], _Dealt | None]:
    """One row from n_facts on, but for Holm's, and its dealings, None where there are none."""
    found = regress(rows, score, measure, design)
    row = {name: found[name] for name in ("n_facts", *_REGRESSED)} | _layers(rows, score, measure, design)
    if found["n_facts"] < MIN_FACTS or np.isnan(found["permutation_pvalue"]):
        return row, None
    names = ["fact_id", "relation", "layer", "acts", score, measure]
    every = rows[names].set_axis(["fact_id", "relation", "layer", "acts", "score", "trace"], axis=1)
    chosen = every if design.keep_null_layers else every[every["acts"]]
    laid_out, plan = profiles(chosen), design.plan
    values = dealt_r2_diff(laid_out, dealings(laid_out.relation, plan.permutations, plan.seed))
    tail = (1 - plan.confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) - found["chance"]
    facts = tuple(sorted(chosen.dropna(subset=["score", "trace"])["fact_id"].unique()))
    row |= {"dealt_low": float(low), "dealt_high": float(high)}
    return row, _Dealt(facts=facts, observed=r2_layer_and_diff(laid_out)[1], values=values)


def _layers(rows: pd.DataFrame, score: str, measure: str, design: Design) -> dict[str, float]:
    """Mean scores at the traced and at one fixed layer, and the regret; nothing with fewer than two facts."""
    values = rows[["fact_id", "layer", measure]].set_axis(["fact_id", "layer", "value"], axis=1)
    table = layer_table(rows, [score], {"": values}, design.plan, keep_null_layers=design.keep_null_layers)
    if table.empty:
        return {}
    at = table.set_index("choice")
    told = {name: float(at.loc["fixed", name]) for name in ("regret", "regret_low", "regret_high")}
    return {"traced": float(at.loc["traced", "mean"]), "fixed": float(at.loc["fixed", "mean"])} | told


def _tested(table: pd.DataFrame) -> "pd.Series[float]":
    """p-values of the rows that are of enough facts, NaN elsewhere."""
    return table["permutation_pvalue"].where(table["n_facts"] >= MIN_FACTS_SHOWN)


def count_table(table: pd.DataFrame, dealt: Sequence[_Dealt | None], confidence: float) -> pd.DataFrame:
    """One row, columns COUNT_COLUMNS: how many of the rows of `robustness_table` reject that traces add nothing.

    tests: rows of enough facts; rejected: of these, with a permutation p of at most 1 - confidence; expected: as many
    would at the most, on average, if no trace told anything; rejected_holm: after Holm's correction. joint_*: of the
    rows that are of one and the same set of facts, the set with most rows, whose traces are dealt together: the tests,
    those that reject, the mean and the `confidence` quantile of their number over dealings, and the share of dealings,
    the sample's own counted in, in which as many do. NaN where traces can be dealt in too few ways.
    """
    level = 1 - confidence
    pvalues = _tested(table)
    row: dict[str, float] = {
        "confidence": confidence, "rows": len(table), "tests": int(pvalues.notna().sum()),
        "rejected": int((pvalues <= level + _TIE).sum()), "expected": level * pvalues.notna().sum(),
        "rejected_holm": int((table["permutation_holm"] <= level + _TIE).sum()),
    }  # fmt: skip
    there = [each for each, p in zip(dealt, pvalues, strict=True) if each is not None and not np.isnan(p)]
    if there:
        ((most, _),) = Counter(each.facts for each in there).most_common(1)
        same = [each for each in there if each.facts == most]
        counts = _rejections(np.stack([np.append(each.observed, each.values) for each in same]), level)
        row |= {
            "joint_tests": len(same), "joint_rejected": int(counts[0]), "joint_expected": float(counts[1:].mean()),
            "joint_high": float(np.quantile(counts[1:], confidence)),
            "joint_pvalue": float((counts >= counts[0]).mean()),
        }  # fmt: skip
    return pd.DataFrame([row], columns=list(COUNT_COLUMNS))


def _rejections(values: _Floats, level: float) -> _Floats:
    """How many of J tests reject at `level` in each of B dealings, the sample's among them; values (J, B) to (B,)."""
    rounded = np.round(values / np.maximum(values.max(1, keepdims=True), 1e-300), 9)  # ties but for rounding
    reached = rankdata(-rounded, method="max", axis=1)  # dealings that add at least as much
    counts: _Floats = (reached / values.shape[1] <= level + _TIE).sum(0)
    return counts
