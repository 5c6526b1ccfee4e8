"""R² by hand and against statsmodels, the columns of the table, what is left out, and degenerate tables."""

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.anova import anova_lm

from pipeline.analysis.profiles import Resampling, expanded_levels, mean_interval, profiles, r2_layer_and_diff
from pipeline.analysis.regression import REGRESSION_COLUMNS, adjusted, fit_models, regress, regression_table
from pipeline.analysis.scores import score_table
from pipeline.analysis.trust import MIN_FACTS_OF_CV, MIN_FACTS_OF_GAIN, MIN_FACTS_SHOWN, shown
from pipeline.errors import UserError
from tests.analysis.synthetic import make_run
from tests.analysis.test_inference import correlated, design, rows_of


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
    assert r2_layer_and_diff(profiles(rows_of(x, y))) == pytest.approx((0.54 / 0.7, 0.10 / 0.7))
    numbers = regress(group_of(x, y), "rewrite", "fraction", design(40))
    assert numbers["partial_r2"] == pytest.approx(0.10 / 0.16)
    assert numbers["chance"] == pytest.approx(0.16 / 0.7 / 2)
    assert numbers["gain"] == pytest.approx(0.10 / 0.7 - 0.08 / 0.7)
    assert numbers["rho_within_layer"] == pytest.approx((1 + 0.5) / 2)  # ranks 1 2 3 on 1 2 3, and on 1 3 2


@pytest.mark.parametrize("seed", range(4))
def test_f_test_is_anovas(seed: int) -> None:
    rows = rows_of(*correlated(np.random.default_rng(seed), 8, 6, slope=0.1 * seed))
    small, large = (smf.ols(f"score ~ {right}", rows).fit() for right in ("C(layer)", "C(layer) * trace"))
    fit = fit_models(rows)
    assert fit.f_pvalue == pytest.approx(anova_lm(small, large)["Pr(>F)"].iloc[1], rel=1e-9)
    assert (fit.r2_layer, fit.r2_both) == pytest.approx((small.rsquared, large.rsquared))
    assert fit.r2_trace == pytest.approx(smf.ols("score ~ trace", rows).fit().rsquared)


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e6])
def test_sums_by_layer_give_statsmodels_r2(scale: float) -> None:
    rng = np.random.default_rng(5)
    x, y = correlated(rng, 9, 7, slope=0.3)
    x[rng.random(x.shape) < 0.15] = np.nan
    x[:, 2] = 0.25  # a layer whose trace does not vary
    rows = rows_of(x * scale, y)
    layer, added = r2_layer_and_diff(profiles(rows))
    fit = fit_models(rows)
    assert layer == pytest.approx(fit.r2_layer, rel=1e-8)
    assert layer + added == pytest.approx(fit.r2_both, rel=1e-8)


def test_rows_are_the_same_whatever_the_order_and_the_other_regressions() -> None:
    run = make_run(8, 6)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    whole = regression_table(scores, ["rewrite", "overall"], ["fraction", "effect"], design(100, seed=1))
    assert list(whole.columns) == list(REGRESSION_COLUMNS)
    assert len(whole) == 5 * 2 * 2
    part = scores[scores["problem"] == "fact_erasure"].sample(frac=1, random_state=0)
    alone = regression_table(part, ["overall"], ["effect"], design(100, seed=1))
    same = whole.query("problem == 'fact_erasure' and score == 'overall' and trace_measure == 'effect'")
    own = [name for name in whole if not name.endswith(("_holm", "_fdr"))]
    pd.testing.assert_frame_equal(alone[own], same[own].reset_index(drop=True), rtol=1e-9)
    other = regression_table(part, ["overall"], ["effect"], design(100, seed=2))
    assert other["gain_low"].item() != alone["gain_low"].item()
    assert other["gain"].item() == alone["gain"].item()


def test_counts_leave_out_failed_edits() -> None:
    run = make_run(5, 6)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    table = regression_table(scores, ["rewrite"], ["fraction"], design(40)).set_index("problem")
    assert table.loc["error_injection", ["n_facts", "n_rows", "n_layers"]].tolist() == [5, 29, 6]
    assert table.loc["fact_erasure", ["n_facts", "n_rows", "n_layers"]].tolist() == [5, 30, 6]
    assert (table["r2_diff"] == table["r2_both"] - table["r2_layer"]).all()
    assert (table["gain"] == table["r2_diff"] - table["chance"]).all()


def test_null_layers_are_dropped_or_kept_and_r2_is_given_both_ways() -> None:
    x, y = correlated(np.random.default_rng(1), 8, 5, slope=0.3)
    y = np.clip(0.5 + 0.2 * y, 0, 1)
    y[:, 4] = 0
    group = group_of(x, y)
    group["acts"] = group["layer"] < 4
    dropped = regress(group, "rewrite", "fraction", design(40))
    kept = regress(group, "rewrite", "fraction", design(40, keep=True))
    without = fit_models(rows_of(x[:, :4], y[:, :4]))
    whole = fit_models(rows_of(x, y))
    assert (dropped["n_layers"], dropped["n_rows"], kept["n_layers"]) == (4, 32, 5)
    assert (dropped["r2_layer"], dropped["r2_both"]) == pytest.approx((without.r2_layer, without.r2_both))
    assert (kept["r2_layer"], kept["r2_both"]) == pytest.approx((whole.r2_layer, whole.r2_both))
    for numbers in (dropped, kept):
        assert (numbers["r2_layer_all"], numbers["r2_both_all"]) == pytest.approx((whole.r2_layer, whole.r2_both))
    assert whole.r2_layer > without.r2_layer + 0.1


def test_adjusted_pvalues_by_hand() -> None:
    pvalues = pd.Series([0.01, np.nan, 0.04, 0.03])
    # Holm: 3 * 0.01, 2 * 0.03, then no less than that; Benjamini and Hochberg: 3 * 0.01, 3 / 2 * 0.03 = 0.045 > 0.04.
    np.testing.assert_allclose(adjusted(pvalues, "holm"), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(adjusted(pvalues, "fdr_bh"), [0.03, np.nan, 0.04, 0.04])
    assert adjusted(pvalues * np.nan, "holm").isna().all()


def test_what_is_not_shown_to_hold_is_not_printed() -> None:
    row = dict.fromkeys(REGRESSION_COLUMNS, 0.5) | {"n_relations": 4, "n_facts": MIN_FACTS_OF_GAIN}
    enough = shown(row)
    assert {name for name, value in enough.items() if value is None} == {"f_pvalue", "permutation_pvalue_all"}
    fewer = shown(row | {"n_facts": MIN_FACTS_OF_GAIN - 1})
    assert [fewer[name] for name in ("gain_low", "gain_high", "gain_bound")] == [None] * 3
    assert fewer["cv_gain_high"] == 0.5
    some = shown(row | {"n_facts": MIN_FACTS_OF_CV - 1})
    assert some["cv_gain_high"] is None
    assert (some["within_low"], some["permutation_holm"], some["gain"]) == (0.5, 0.5, 0.5)
    few = shown(row | {"n_facts": MIN_FACTS_SHOWN - 1})
    assert [few[name] for name in ("gain_low", "gain_bound", "within_holm", "cv_gain_high")] == [None] * 4
    assert few["gain"] == 0.5
    assert shown(row | {"n_relations": 1})["permutation_pvalue_all"] == 0.5


def group_of(x: NDArray[np.float64], y: NDArray[np.float64]) -> pd.DataFrame:
    return rows_of(x, y, relations=1).rename(columns={"score": "rewrite", "trace": "fraction"})


R2 = {"r2_layer", "r2_trace", "r2_both", "r2_diff", "r2_layer_all", "r2_both_all", "partial_r2"}
GAIN = {"gain_low", "gain_high", "gain_bound", "permutation_pvalue", "permutation_pvalue_all"}
SLOPE = {"within_slope", "within_low", "within_high", "within_pvalue"}
CV = {"cv_r2_layer", "cv_r2_both", "cv_gain", "cv_gain_low", "cv_gain_high"}
ALL = R2 | GAIN | SLOPE | CV | {"chance", "gain", "f_pvalue", "rho_within_layer"}
CV_ENDS = {"cv_gain_low", "cv_gain_high"}


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize(
    ("case", "undefined"),
    [
        ("constant score", ALL),
        ("two facts", ALL),
        ("no rows", ALL),
        ("one layer", ALL - {"r2_trace"}),
        ("constant trace", GAIN | SLOPE | CV_ENDS | {"f_pvalue", "rho_within_layer"}),
        (
            "score given by the layer",
            {"partial_r2", "f_pvalue", "rho_within_layer"} | GAIN | (SLOPE - {"within_slope"}) | CV_ENDS,
        ),
        ("one fact has all the trace", SLOPE),
    ],
)  # fmt: skip
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
    numbers = regress(group_of(x, y), "rewrite", "fraction", design(40))
    assert {name for name, value in numbers.items() if np.isnan(value)} == undefined
    assert numbers["n_rows"] == int((~np.isnan(x)).sum())


@pytest.mark.usefixtures("no_warnings")
def test_every_fact_at_one_layer_breaks_nothing() -> None:
    x, y = correlated(np.random.default_rng(0), 6, 4)
    x = np.where(np.arange(4) == np.arange(6)[:, None] % 4, x, np.nan)
    numbers = regress(group_of(x, y), "rewrite", "fraction", design(40))
    assert np.isnan(numbers["within_slope"])
    assert 0 <= numbers["r2_layer"] <= 1


def test_a_constant_trace_adds_exactly_nothing() -> None:
    x, y = correlated(np.random.default_rng(0), 6, 4)
    numbers = regress(group_of(np.full_like(x, 0.1), y), "rewrite", "fraction", design(40))
    assert numbers["r2_trace"] == 0
    assert numbers["r2_diff"] == pytest.approx(0, abs=1e-12)
    assert (numbers["chance"], numbers["cv_gain"]) == (0, 0)


def test_two_rows_for_one_fact_and_layer_are_refused() -> None:
    group = group_of(*correlated(np.random.default_rng(0), 4, 3))
    with pytest.raises(UserError, match=r"fact f000 has two rows for layer 0"):
        regress(pd.concat([group, group.iloc[:1]]), "rewrite", "fraction", design(40))


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
    plan = Resampling(samples=4000, permutations=40, confidence=0.95, seed=0)
    mean, low, high, n = mean_interval(values, plan)
    assert n.tolist() == [40, 0, 1, 40]
    assert mean[0] == pytest.approx(values[:, 0].mean())
    half = stats.t.ppf(0.975, 39) * values[:, 0].std(ddof=1) / np.sqrt(40)
    assert high[0] - mean[0] == pytest.approx(half, rel=0.15)
    assert mean[0] - low[0] == pytest.approx(half, rel=0.15)
    assert np.isnan(mean[1])
    assert mean[2] == values[0, 2]
    assert np.isnan(low[1:3]).all()
    assert np.isnan(mean_interval(values[:1], plan)[1]).all()
