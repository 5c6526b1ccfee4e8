"""R² by hand and against statsmodels, degenerate tables, and what tests and intervals promise, by
simulation."""

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.anova import anova_lm

from pipeline.analysis.regression import (
    REGRESSION_COLUMNS,
    Profiles,
    chance_r2_diff,
    expanded_levels,
    fit_models,
    mean_interval,
    profiles,
    r2_diff_interval,
    r2_layer_and_diff,
    regress,
    regression_table,
    slope_pvalue,
)
from pipeline.analysis.scores import score_table
from pipeline.errors import UserError
from tests.analysis.synthetic import make_run


def rows_of(x: NDArray[np.float64], y: NDArray[np.float64]) -> pd.DataFrame:
    """Rows fact_id, layer, score, trace from facts by layers; a pair is left out where x is NaN."""
    facts, layers = x.shape
    rows = pd.DataFrame(
        {
            "fact_id": np.repeat([f"f{i:03d}" for i in range(facts)], layers),
            "layer": np.tile(np.arange(layers), facts),
            "score": y.ravel(),
            "trace": x.ravel(),
        }
    )
    return rows.dropna().reset_index(drop=True)


def correlated(
    rng: np.random.Generator, facts: int, layers: int, slope: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Trace and score, each half explained by the fact; the score also by the layer, and by slope times
    trace."""
    shared = rng.normal(size=(2, facts, 1))
    own = rng.normal(size=(2, facts, layers))
    x, noise = np.sqrt(0.5) * (shared + own)
    return x, 1.5 * np.cos(np.linspace(-2, 2, layers)) + slope * x + 0.7 * noise


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_r2_by_hand() -> None:
    # Layer 0: scores 0, 0.2, 0.4 on trace 0, 1, 2, a line; layer 1: 0.6, 1, 0.8 on the same. Mean 0.5,
    # SST 0.7. Layer means 0.2 and 0.8 leave 0.08 + 0.08. The lines explain all of the first and, with slope
    # 0.1, 0.02 of the second. One line for all has slope 0.15: 0.15² * 4 = 0.09.
    x = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    y = np.array([[0.0, 0.6], [0.2, 1.0], [0.4, 0.8]])
    fit = fit_models(rows_of(x, y))
    assert fit.r2_layer == pytest.approx(0.54 / 0.7)
    assert fit.r2_trace == pytest.approx(0.09 / 0.7)
    assert fit.r2_both == pytest.approx(0.64 / 0.7)
    # F = (0.10 / 2) / (0.06 / 2) on 2 and 2 degrees of freedom
    assert fit.f_pvalue == pytest.approx(stats.f.sf(0.05 / 0.03, 2, 2))
    layer, added = r2_layer_and_diff(profiles(rows_of(x, y)), np.ones((1, 3)))
    assert layer == pytest.approx([0.54 / 0.7])
    assert added == pytest.approx([0.10 / 0.7])


@pytest.mark.parametrize("seed", range(4))
def test_f_test_is_anovas(seed: int) -> None:
    rows = rows_of(*correlated(np.random.default_rng(seed), 8, 6, slope=0.1 * seed))
    small, large = (smf.ols(f"score ~ {right}", rows).fit() for right in ("C(layer)", "C(layer) * trace"))
    fit = fit_models(rows)
    assert fit.f_pvalue == pytest.approx(anova_lm(small, large)["Pr(>F)"].iloc[1], rel=1e-9)
    assert (fit.r2_layer, fit.r2_both) == pytest.approx((small.rsquared, large.rsquared))
    assert fit.r2_trace == pytest.approx(smf.ols("score ~ trace", rows).fit().rsquared)


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e6])
def test_sums_by_layer_give_statsmodels_r2_for_any_resample(scale: float) -> None:
    rng = np.random.default_rng(5)
    x, y = correlated(rng, 9, 7, slope=0.3)
    x[rng.random(x.shape) < 0.15] = np.nan  # failed edits
    x[:, 2] = 0.25  # a layer whose trace does not vary
    rows = rows_of(x * scale, y)
    facts = profiles(rows)
    weights = np.vstack([np.ones(9), rng.multinomial(9, np.full(9, 1 / 9), size=6)]).astype(float)
    layer, added = r2_layer_and_diff(facts, weights)
    names = sorted(rows["fact_id"].unique())
    for row, count in enumerate(weights.astype(int)):
        drawn = pd.concat([rows[rows["fact_id"] == name] for name in np.repeat(names, count)])
        fit = fit_models(drawn)
        assert layer[row] == pytest.approx(fit.r2_layer, rel=1e-8)
        assert layer[row] + added[row] == pytest.approx(fit.r2_both, rel=1e-8)


def test_slope_test_is_the_jackknife_over_facts() -> None:
    x, y = correlated(np.random.default_rng(3), 10, 6, slope=0.25)
    x[0, 1] = x[4, 5] = np.nan
    rows = rows_of(x, y)

    def slope(kept: pd.DataFrame) -> float:
        return float(smf.ols("score ~ C(layer) + trace", kept).fit().params["trace"])

    whole = slope(rows)
    without = np.array([slope(rows[rows["fact_id"] != name]) for name in rows["fact_id"].unique()])
    error = np.sqrt(9 / 10 * ((without - whole) ** 2).sum())
    assert slope_pvalue(profiles(rows)) == pytest.approx(2 * stats.t.sf(abs(whole / error), 9), rel=1e-8)


def test_intervals_are_the_same_whatever_the_order_and_the_other_regressions() -> None:
    run = make_run(8, 6)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    whole = regression_table(scores, ["rewrite", "overall"], ["fraction", "effect"], 300, 0.95, seed=1)
    assert list(whole.columns) == list(REGRESSION_COLUMNS)
    assert len(whole) == 5 * 2 * 2
    pd.testing.assert_frame_equal(
        whole, regression_table(scores, ["rewrite", "overall"], ["fraction", "effect"], 300, 0.95, seed=1)
    )
    part = scores[scores["problem"] == "fact_erasure"].sample(frac=1, random_state=0)
    alone = regression_table(part, ["overall"], ["effect"], 300, 0.95, seed=1)
    same = whole.query("problem == 'fact_erasure' and score == 'overall' and trace_measure == 'effect'")
    pd.testing.assert_frame_equal(alone, same.reset_index(drop=True), rtol=1e-9)
    other = regression_table(part, ["overall"], ["effect"], 300, 0.95, seed=2)
    assert other["r2_diff_high"].item() != alone["r2_diff_high"].item()
    assert other["r2_diff"].item() == alone["r2_diff"].item()


def test_counts_leave_out_failed_edits() -> None:
    run = make_run(5, 6)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    table = regression_table(scores, ["rewrite"], ["fraction"], 100, 0.95, 0).set_index("problem")
    assert table.loc["error_injection", ["n_facts", "n_rows"]].tolist() == [5, 29]
    assert table.loc["fact_erasure", ["n_facts", "n_rows"]].tolist() == [5, 30]
    assert (table["r2_diff"] == table["r2_both"] - table["r2_layer"]).all()


def group_of(x: NDArray[np.float64], y: NDArray[np.float64]) -> pd.DataFrame:
    return rows_of(x, y).rename(columns={"score": "rewrite", "trace": "fraction"})


ALL = {
    "r2_layer",
    "r2_trace",
    "r2_both",
    "r2_diff",
    "f_pvalue",
    "cluster_pvalue",
    "r2_diff_low",
    "r2_diff_high",
}


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize(
    ("case", "undefined"),
    [
        ("constant score", ALL),
        ("two facts", ALL),
        ("no rows", ALL),
        ("one layer", ALL - {"r2_trace"}),
        ("constant trace", {"f_pvalue", "cluster_pvalue"}),
        ("score given by the layer", {"f_pvalue", "cluster_pvalue"}),
        ("one fact has all the trace", {"cluster_pvalue"}),
        ("every fact at one layer", {"f_pvalue", "cluster_pvalue"}),
    ],
)
def test_degenerate_tables_give_nan(case: str, undefined: set[str]) -> None:
    x, y = correlated(np.random.default_rng(0), 6, 4)
    match case:
        case "constant score":
            y = np.full_like(y, 0.3)
        case "two facts":
            x, y = x[:2], y[:2]
        case "no rows":
            x = np.full_like(x, np.nan)
        case "one layer":
            x, y = x[:, :1], y[:, :1]
        case "constant trace":
            x = np.full_like(x, 0.1)
        case "score given by the layer":
            y = np.broadcast_to([0.1, 0.4, 0.2, 0.9], y.shape)
        case "one fact has all the trace":
            x = np.where(np.arange(6)[:, None] == 2, 0.5, 0.0) * np.ones_like(x)
        case "every fact at one layer":
            x = np.where(np.arange(4) == np.arange(6)[:, None] % 4, x, np.nan)
            x[4:] = np.nan
    numbers = regress(group_of(x, y), "rewrite", "fraction", 200, 0.95, 0)
    assert {name for name, value in numbers.items() if np.isnan(value)} == undefined
    assert numbers["n_rows"] == int((~np.isnan(x)).sum())


def test_a_constant_trace_adds_exactly_nothing() -> None:
    x, y = correlated(np.random.default_rng(0), 6, 4)
    numbers = regress(group_of(np.full_like(x, 0.1), y), "rewrite", "fraction", 200, 0.95, 0)
    assert numbers["r2_trace"] == 0
    assert numbers["r2_diff"] == pytest.approx(0, abs=1e-12)
    assert (numbers["r2_diff_low"], numbers["r2_diff_high"]) == (0, 0)


def test_two_rows_for_one_fact_and_layer_are_refused() -> None:
    group = group_of(*correlated(np.random.default_rng(0), 4, 3))
    with pytest.raises(UserError, match=r"fact f000 has two rows for layer 0"):
        regress(pd.concat([group, group.iloc[:1]]), "rewrite", "fraction", 100, 0.95, 0)


def test_what_dealt_traces_add_on_average() -> None:
    x, y = correlated(np.random.default_rng(2), 12, 30, slope=0.5)
    layer, _ = r2_layer_and_diff(profiles(rows_of(x, y)), np.ones((1, 12)))
    rng = np.random.default_rng(0)
    dealt = [r2_layer_and_diff(profiles(rows_of(rng.permutation(x), y)), np.ones((1, 12)))[1][0] for _ in range(300)]
    error = np.std(dealt) / np.sqrt(len(dealt))
    assert abs(np.mean(dealt) - chance_r2_diff(float(layer[0]), 12)) < 4 * error


def f_pvalue(facts: Profiles) -> float:
    """The paper's F-test from the sums by layer; test_f_test_is_anovas holds the one in use to
    statsmodels."""
    count, layers = facts.x.shape
    layer, added = (float(part[0]) for part in r2_layer_and_diff(facts, np.ones((1, count))))
    left = count * layers - 2 * layers
    return float(stats.f.sf((added / layers) / ((1 - layer - added) / left), layers, left))


def simulated(facts: int, layers: int, slope: float, seed: int) -> Profiles:
    x, y = correlated(np.random.default_rng([facts, layers, seed]), facts, layers, slope)
    means = y.mean(0)
    return Profiles(x=x - x.mean(0), y=y - means, present=np.ones_like(x), layer_means=means)


def test_the_slope_test_keeps_its_level_and_the_f_test_does_not() -> None:
    # 12 facts, 30 layers, no relation, correlation 0.5 within facts. 1,000 tables: a binomial error of 0.7 %.
    tables = [simulated(12, 30, 0.0, seed) for seed in range(1000)]
    by_fact = np.mean([slope_pvalue(facts) < 0.05 for facts in tables])
    by_row = np.mean([f_pvalue(facts) < 0.05 for facts in tables])
    assert 0.02 < by_fact < 0.075
    assert by_row > 0.09
    # and it finds a slope that is there
    assert np.mean([slope_pvalue(simulated(12, 30, 0.5, seed)) < 0.05 for seed in range(200)]) > 0.9


@pytest.mark.parametrize("slope", [0.0, 0.2, 0.5])
def test_the_interval_holds_the_truth(slope: float) -> None:
    # The truth: variance of slope * trace within layers over the score's whole variance, layers included.
    between = np.var(1.5 * np.cos(np.linspace(-2, 2, 30)))
    truth = slope**2 / (slope**2 + 0.49 + between)
    bounds = np.array([r2_diff_interval(simulated(12, 30, slope, seed), 400, 0.95, 0) for seed in range(250)])
    held = (bounds[:, 0] <= truth) & (truth <= bounds[:, 1])
    assert held.mean() > 0.86  # 0.96, 0.95 and 0.90 in longer runs


def test_the_plain_percentile_interval_would_miss_nothing_added() -> None:
    rng = np.random.default_rng(0)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=400).astype(float)
    lows = [np.quantile(r2_layer_and_diff(simulated(12, 30, 0.0, s), weights)[1], 0.025) for s in range(50)]
    assert min(lows) > 0.01
    assert np.mean([r2_diff_interval(simulated(12, 30, 0.0, s), 400, 0.95, 0)[0] == 0 for s in range(50)]) > 0.85


def test_expanded_levels_are_wider_for_few_and_nominal_for_many() -> None:
    low, high = expanded_levels(12, 0.95)
    assert low == pytest.approx(stats.norm.cdf(-2.2009852 * np.sqrt(12 / 11)))
    assert low + high == pytest.approx(1)
    assert expanded_levels(10**6, 0.95) == pytest.approx((0.025, 0.975), abs=1e-5)


@pytest.mark.usefixtures("no_warnings")
def test_mean_intervals() -> None:
    values = np.random.default_rng(0).normal(size=(40, 4))
    values[:, 1] = np.nan
    values[1:, 2] = np.nan
    mean, low, high, n = mean_interval(values, 4000, 0.95, 0)
    assert n.tolist() == [40, 0, 1, 40]
    assert mean[0] == pytest.approx(values[:, 0].mean())
    half = stats.t.ppf(0.975, 39) * values[:, 0].std(ddof=1) / np.sqrt(40)
    assert high[0] - mean[0] == pytest.approx(half, rel=0.15)
    assert mean[0] - low[0] == pytest.approx(half, rel=0.15)
    assert np.isnan(mean[1])
    assert mean[2] == values[0, 2]
    assert np.isnan(low[1:3]).all()
    assert np.isnan(mean_interval(values[:1], 100, 0.95, 0)[1]).all()
