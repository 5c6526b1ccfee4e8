"""Dealings, slopes and folds against independent code, and what intervals and tests promise, by simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from numpy.typing import NDArray
from scipy import linalg, stats

from benchmarks.simulate import Situation, as_table, simulate, situations
from pipeline.inference import (
    Spread,
    dealings,
    dealt_r2_diff,
    gain_inference,
    permutation_pvalue,
    root_variance,
)
from pipeline.profiles import Resampling, profiles, r2_layer_and_diff
from pipeline.regression import Design, chance_r2_diff, fit_models
from pipeline.slopes import dealt_cv_gain, folds, held_out, within_slope

Floats = NDArray[np.float64]


def design(permutations: int, seed: int = 0, keep: bool = False) -> Design:
    plan = Resampling(samples=100, permutations=permutations, confidence=0.95, seed=seed)
    return Design(keep_null_layers=keep, folds=3, plan=plan)


def rows_of(x: Floats, y: Floats, relations: int = 2) -> pd.DataFrame:
    """Rows fact_id, relation, layer, acts, score, trace from facts by layers; a pair is left out where x is NaN."""
    facts, layers = x.shape
    rows = pd.DataFrame(
        {
            "fact_id": np.repeat([f"f{i:03d}" for i in range(facts)], layers),
            "relation": np.repeat([f"r{i % relations}" for i in range(facts)], layers),
            "layer": np.tile(np.arange(layers), facts),
            "acts": True,
            "score": y.ravel(),
            "trace": x.ravel(),
        }
    )
    return rows[rows["trace"].notna()].reset_index(drop=True)


def correlated(rng: np.random.Generator, facts: int, layers: int, slope: float = 0.0) -> tuple[Floats, Floats]:
    """Trace and score, each half explained by the fact; the score also by the layer, and by slope times trace."""
    shared = rng.normal(size=(2, facts, 1))
    own = rng.normal(size=(2, facts, layers))
    x, noise = np.sqrt(0.5) * (shared + own)
    return x, 1.5 * np.cos(np.linspace(-2, 2, layers)) + slope * x + 0.7 * noise


def test_dealings_stay_within_their_group_and_reach_every_order() -> None:
    orders = dealings(np.array([1, 0, 1, 0, 1]), 2000, 0)
    assert (np.sort(orders, axis=1) == np.arange(5)).all()
    assert set(orders[:, [0, 2, 4]].ravel()) == {0, 2, 4}
    seen, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(seen) == 6 * 2
    assert counts.min() > 2000 / 12 * 0.6


@pytest.mark.parametrize("missing", [False, True])
def test_dealt_traces_are_refitted_one_by_one(missing: bool) -> None:
    rng = np.random.default_rng(2)
    x, y = correlated(rng, 7, 4, slope=0.4)
    if missing:
        y[0, 1] = y[3, 2] = np.nan
    facts = profiles(rows_of(x, y))
    orders = dealings(facts.relation, 6, 3)
    for order, found in zip(orders, dealt_r2_diff(facts, orders), strict=True):
        fit = fit_models(rows_of(x[order], y).dropna())
        assert found == pytest.approx(fit.r2_both - fit.r2_layer, rel=1e-8)


def test_permutation_pvalue_is_the_share_of_all_dealings() -> None:
    x, y = correlated(np.random.default_rng(4), 6, 3, slope=0.5)
    facts = profiles(rows_of(x, y))
    own = r2_layer_and_diff(facts)[1]
    every = []
    for first, second in itertools.product(itertools.permutations([0, 2, 4]), itertools.permutations([1, 3, 5])):
        order = np.empty(6, dtype=int)
        order[[0, 2, 4]], order[[1, 3, 5]] = first, second
        again = profiles(rows_of(x[order], y))
        every.append(r2_layer_and_diff(again)[1])
    exact = np.mean(np.array(every) >= own - 1e-9)
    drawn = dealt_r2_diff(facts, dealings(facts.relation, 4000, 0))
    assert permutation_pvalue(own, drawn) == pytest.approx(exact, abs=0.03)
    assert permutation_pvalue(2.0, drawn) == pytest.approx(1 / 4001)


def test_few_dealings_within_relations_give_no_pvalue() -> None:
    x, y = correlated(np.random.default_rng(4), 6, 3)
    plan = design(40).plan
    assert np.isnan(gain_inference(profiles(rows_of(x, y)), 0.2, 0.1, plan).pvalue)  # 36 ways
    assert gain_inference(profiles(rows_of(x, y, relations=1)), 0.2, 0.1, plan).pvalue > 0  # 720


def test_chance_is_what_dealt_traces_add() -> None:
    x, y = correlated(np.random.default_rng(2), 12, 30, slope=0.5)
    facts, plan = profiles(rows_of(x, y)), design(2000).plan
    dealt = dealt_r2_diff(facts, dealings(np.zeros_like(facts.relation), 2000, 0))
    exact = chance_r2_diff(facts, plan)
    assert exact == pytest.approx((1 - fit_models(rows_of(x, y)).r2_layer) / 11)
    assert abs(dealt.mean() - exact) < 4 * dealt.std() / np.sqrt(2000)
    x[3, 4] = np.nan
    there = profiles(rows_of(x, y))
    assert chance_r2_diff(there, plan) == dealt_r2_diff(there, dealings(0 * there.relation, 2000, 0)).mean()


def test_where_there_is_no_gain_the_interval_is_the_dealings_own_and_reaches_below_0() -> None:
    facts = profiles(rows_of(*correlated(np.random.default_rng(8), 12, 6)))
    plan = design(399).plan
    dealt = dealt_r2_diff(facts, dealings(np.zeros_like(facts.relation), 399, 0))
    own, chance = r2_layer_and_diff(facts)[1], chance_r2_diff(facts, plan)
    found = gain_inference(facts, own, chance, plan)
    assert found.low < 0 < found.high
    assert found.low == pytest.approx(own - chance - np.quantile(dealt - dealt.mean(), 0.975), abs=0.01)
    assert found.bound < found.high


def test_an_end_is_where_the_estimate_is_that_quantile() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 999)
    spread = Spread(noise=noise, rate=0.002, chance=0.01, room=0.5, freedom=40, seed=0)
    for level in (0.025, 0.975):
        end = spread.invert(0.06, level)
        assert spread.quantile(np.array([end]), level)[0] == pytest.approx(0.06, abs=1e-4)
    assert spread.invert(-0.5, 0.025) < -0.4


@pytest.mark.parametrize("common", [False, True])
def test_root_variance_is_the_jackknife_over_refits(common: bool) -> None:
    x, y = correlated(np.random.default_rng(9), 8, 4, slope=0.6)
    rows = rows_of(x, y)

    def root(kept: pd.DataFrame) -> float:
        if not common:
            fit = fit_models(kept)
            return float(np.sqrt(fit.r2_both - fit.r2_layer))
        small, large = (smf.ols(f"score ~ {right}", kept).fit() for right in ("C(layer)", "C(layer) + trace"))
        return float(np.sign(large.params["trace"]) * np.sqrt(large.rsquared - small.rsquared))

    roots = pd.Series({name: root(rows[rows["fact_id"] != name]) for name in rows["fact_id"].unique()})
    relation = rows.drop_duplicates("fact_id").set_index("fact_id")["relation"]
    groups = roots.groupby(relation)
    expected = (groups.var() * groups.size()).sum()
    assert root_variance(profiles(rows), common)[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("missing", [False, True])
def test_the_within_slope_is_that_of_the_dummies(missing: bool) -> None:
    rng = np.random.default_rng(6)
    x, y = correlated(rng, 12, 5, slope=0.3)
    if missing:
        y[0, 1] = y[7, 2] = y[8, 4] = np.nan
    rows = rows_of(0.3 * x, y)
    fit = smf.ols("score ~ C(relation):C(layer) + C(fact_id) + trace", rows.dropna()).fit()
    found = within_slope(profiles(rows), 0.95)
    assert found.slope == pytest.approx(fit.params["trace"], rel=1e-6)
    assert found.low < found.slope < found.high


def test_the_within_error_is_cr2_with_bell_and_mccaffreys_freedom() -> None:
    # Written out with whole matrices: A_f = (I - H)_ff^{-1/2}, V = sum (w' A e)², freedom (sum g)² / sum g².
    x, y = correlated(np.random.default_rng(6), 9, 4, slope=0.3)
    rows = rows_of(x, y, relations=3)
    formula = smf.ols("score ~ C(relation):C(layer) + C(fact_id) + trace", rows)
    X, e = formula.exog, np.asarray(formula.fit().resid)
    place = formula.exog_names.index("trace")
    pinv = np.linalg.pinv(X)
    M = np.eye(len(X)) - X @ pinv
    cluster = rows["fact_id"].to_numpy()
    parts, sums = [], []
    for name in np.unique(cluster):
        own = cluster == name
        values, vectors = linalg.eigh(M[np.ix_(own, own)])
        root = (vectors[:, values > 1e-9] / np.sqrt(values[values > 1e-9])) @ vectors[:, values > 1e-9].T
        weight = pinv[place, own] @ root
        sums.append(weight @ e[own])
        parts.append(weight @ M[own])
    G = np.array(parts) @ np.array(parts).T
    error, freedom = np.sqrt(np.sum(np.square(sums))), np.trace(G) ** 2 / (G**2).sum()
    found = within_slope(profiles(rows), 0.9)
    assert found.pvalue == pytest.approx(2 * stats.t.sf(abs(found.slope) / error, freedom), rel=1e-6)
    assert found.high - found.slope == pytest.approx(stats.t.ppf(0.95, freedom) * error, rel=1e-6)


def test_held_out_by_hand() -> None:
    x, y = correlated(np.random.default_rng(7), 10, 4, slope=0.5)
    rows, plan = rows_of(x, y), design(200).plan
    fold = folds(profiles(rows).relation, 3, 0)
    names = np.sort(rows["fact_id"].unique())
    by_mean = by_layer = by_both = 0.0
    for k in range(3):
        test = rows["fact_id"].isin(names[fold == k])
        train, rest = rows[~test], rows[test]
        by_mean += ((rest["score"] - train["score"].mean()) ** 2).sum()
        for right in ("C(layer)", "C(layer) + trace"):
            wrong = ((rest["score"] - smf.ols(f"score ~ {right}", train).fit().predict(rest)) ** 2).sum()
            by_layer, by_both = (by_layer + wrong, by_both) if right == "C(layer)" else (by_layer, by_both + wrong)
    found = held_out(profiles(rows), 3, plan)
    assert found.r2_layer == pytest.approx(1 - by_layer / by_mean)
    assert found.r2_both == pytest.approx(1 - by_both / by_mean)
    assert found.gain == pytest.approx((by_layer - by_both) / by_mean)
    assert found.low < found.gain < found.high


def test_dealt_held_out_gains_are_refitted_one_by_one() -> None:
    x, y = correlated(np.random.default_rng(7), 10, 4, slope=0.5)
    y[2, 1] = np.nan
    facts = profiles(rows_of(x, y))
    orders = dealings(facts.relation, 3, 1)
    whole = held_out(facts, 3, design(40).plan).gain / dealt_cv_gain(
        facts, folds(facts.relation, 3, 0), np.arange(10)[None]
    )
    dealt = dealt_cv_gain(facts, folds(facts.relation, 3, 0), orders) * whole
    for order, gain in zip(orders, dealt, strict=True):
        again = profiles(rows_of(x[order], y))
        assert gain == pytest.approx(held_out(again, 3, design(40).plan).gain, rel=1e-6)


def test_folds_are_even_overall_and_in_every_relation() -> None:
    relation = np.repeat([0, 1, 2], [7, 5, 11])
    fold = folds(relation, 4, 0)
    assert np.ptp(np.bincount(fold)) <= 1
    assert all(np.ptp(np.bincount(fold[relation == r], minlength=4)) <= 1 for r in range(3))
    assert (fold != folds(relation, 4, 1)).any()


def within(share: float, nominal: float, runs: int) -> bool:
    """Whether a share is one that a method holding 2 % about the nominal gives in `runs` runs, by 3 standard errors."""
    return abs(share - nominal) < 0.02 + 3 * np.sqrt(nominal * (1 - nominal) / runs)


def test_sizes_and_coverage_where_there_is_nothing() -> None:
    runs = 150
    found = simulate(Situation(facts=40, icc=0.2, kind="layer", gain=0.0), runs, 99, population=300, strength=0.0)
    for name in ("gain_cover", "bound_cover", "within_cover"):
        assert within(found[name], 0.95, runs), name
    for name in ("permutation", "within"):
        assert within(found[name], 0.05, runs), name
    # An interval clipped at 0 is never below it; one that sits above 0, as the plain bootstrap's, is often above.
    assert within(found["gain_above_0"], 0.025, runs)
    assert found["gain_below_0"] > 0


def test_a_fact_effect_is_a_gain_and_no_layer_to_choose() -> None:
    runs = 80
    found = simulate(Situation(facts=40, icc=0.2, kind="fact", gain=0.04), runs, 99, population=300, strength=0.85)
    assert found["permutation"] > 0.9
    assert within(found["within"], 0.05, runs)
    assert within(found["within_cover"], 0.95, runs)
    assert within(found["gain_cover"], 0.95, runs)


def test_the_table_has_a_row_for_each_situation() -> None:
    found = simulate(Situation(facts=12, icc=0.2, kind="height", gain=0.01), 8, 49, population=50, strength=0.5)
    lines = as_table([found]).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| 12 | 0.2 | height | 0.01 |")
    assert {(s.facts, s.gain) for s in situations()} >= set(itertools.product((12, 100, 652), (0.0, 0.01, 0.04)))
