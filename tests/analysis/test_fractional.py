"""The fractional logit: what it finds where the truth is known, what it shares with least squares, its empty cells."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from numpy.typing import NDArray
from scipy.special import expit

from pipeline.analysis.collapse import with_harm
from pipeline.analysis.fractional import (
    FRACTIONAL_COLUMNS,
    fit_lines,
    fractional,
    fractional_table,
    is_separated,
    logit_residuals,
    marginal_effect,
)
from pipeline.analysis.profiles import Resampling, profiles
from pipeline.analysis.regression import Design, regress, regression_table
from pipeline.analysis.scores import score_table
from tests.analysis.synthetic import PROBLEMS, make_run

DESIGN = Design(keep_null_layers=False, folds=5, plan=Resampling(samples=50, permutations=99, confidence=0.95, seed=0))


def rows_of(score: NDArray[np.float64], trace: NDArray[np.float64]) -> pd.DataFrame:
    """Rows as `of_regression` makes them, from scores and traces of shape (facts, layers)."""
    fact, layer = np.indices(score.shape)
    return pd.DataFrame(
        {
            "fact_id": [f"f{i:03d}" for i in fact.ravel()], "relation": [f"r{i % 3}" for i in fact.ravel()],
            "layer": layer.ravel(), "acts": True, "score": score.ravel(), "trace": trace.ravel(),
        }
    )  # fmt: skip


def noisy(facts: int, layers: int, effect: float, seed: int = 0) -> pd.DataFrame:
    """Scores near both ends that rise with the trace by `effect` in logits, and facts of which some are easier."""
    rng = np.random.default_rng(seed)
    trace = rng.beta(2, 3, (facts, 1)) * rng.uniform(0, 1, (facts, layers))
    eta = 2.0 * np.cos(np.arange(layers)) + rng.normal(0, 0.7, (facts, 1)) + effect * trace
    return rows_of(expit(eta + rng.normal(0, 0.5, (facts, layers))), trace)


def test_scores_that_are_logistic_in_the_trace_are_explained_whole_and_by_straight_lines_not() -> None:
    x = np.linspace(-8, 8, 15)[:, None] + np.array([0.0, 1.0, 2.0])
    rows = rows_of(expit(x * [1, 2, 3]), x)
    found = fractional(rows, DESIGN)
    assert found["r2_both"] == pytest.approx(1, abs=1e-9)
    line = regress(rows, "score", "trace", DESIGN)
    assert 0.6 < line["r2_both"] < 0.9
    assert found["r2_layer"] == pytest.approx(line["r2_layer"])
    assert found["note"] == ""


def test_it_is_statsmodels_own_model() -> None:
    rows = noisy(14, 5, 2.0)
    found = fractional(rows, DESIGN)
    total = ((rows["score"] - rows["score"].mean()) ** 2).sum()
    for name, formula in (("layer", "C(layer)"), ("trace", "trace"), ("both", "C(layer) * trace")):
        fit = smf.glm(f"score ~ {formula}", rows, family=sm.families.Binomial()).fit(tol=1e-12)
        r2 = 1 - ((rows["score"] - fit.fittedvalues) ** 2).sum() / total
        assert found[f"r2_{name}"] == pytest.approx(r2, abs=1e-7), name
    mean = rows.groupby("fact_id")["trace"].transform("mean")
    codes = rows["fact_id"].factorize()[0]
    fit = smf.glm("score ~ C(layer) + trace + mean", rows.assign(mean=mean), family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": codes}
    )
    weight = fit.fittedvalues * (1 - fit.fittedvalues)
    assert found["ame"] == pytest.approx(fit.params["trace"] * weight.mean(), rel=1e-6)


def test_the_slopes_interval_is_by_facts() -> None:
    rows = noisy(60, 6, 2.0)
    slope = marginal_effect(profiles(rows), 0.95)
    without = [
        marginal_effect(profiles(rows[rows["fact_id"] != fact]), 0.95).ame[0] for fact in rows["fact_id"].unique()
    ]
    jackknife = np.sqrt(59 / 60 * ((np.array(without) - np.mean(without)) ** 2).sum())
    assert slope.ame[2] - slope.ame[0] == pytest.approx(2.001 * jackknife, rel=0.15)
    twice = pd.concat([rows, rows.assign(layer=rows["layer"] + 6)])  # every row again: no fact more
    again = marginal_effect(profiles(twice), 0.95)
    assert again.ame[0] == pytest.approx(slope.ame[0], rel=1e-6)
    assert again.ame[2] - again.ame[0] == pytest.approx(slope.ame[2] - slope.ame[0], rel=0.05)


def test_the_slope_is_of_a_facts_layers_and_not_of_its_ease() -> None:
    rng = np.random.default_rng(1)
    height = rng.uniform(0, 1, (80, 1))
    trace = np.repeat(height, 6, axis=1) + rng.normal(0, 0.1, (80, 6))
    rows = rows_of(expit(4 * height - 2 + rng.normal(0, 0.2, (80, 6))), trace)  # facts that trace high are easy
    slope = marginal_effect(profiles(rows), 0.95)
    assert abs(slope.ame[0]) < 0.05
    assert slope.ame[1] < 0 < slope.ame[2]
    assert abs(slope.linear[0]) < 0.05


def test_the_traces_unit_is_the_slopes() -> None:
    rows = noisy(20, 5, 2.0)
    one, ten = fractional(rows, DESIGN), fractional(rows.assign(trace=rows["trace"] * 10 + 3), DESIGN)
    for name in ("ame", "ame_low", "ame_high", "linear_slope"):
        assert ten[name] == pytest.approx(one[name] / 10, rel=1e-5)
    assert ten["r2_both"] == pytest.approx(one["r2_both"], abs=1e-9)


def test_where_there_is_nothing_to_find_the_gain_is_about_chance() -> None:
    found = [fractional(noisy(15, 4, 0.0, seed), DESIGN) for seed in range(25)]
    added, chance = (np.array([one[name] for one in found], dtype=float) for name in ("r2_diff", "chance"))
    assert added.mean() == pytest.approx(chance.mean(), abs=3 * added.std() / 5)
    assert chance.mean() > 0.01
    there = [fractional(noisy(15, 4, 6.0, seed), DESIGN) for seed in range(5)]
    assert min(one["gain"] for one in there) > 0.02


def test_scores_of_0_and_1_that_the_trace_parts_leave_an_empty_cell() -> None:
    trace = np.linspace(0, 1, 8)[:, None] * np.array([1.0, 0.9, 0.7])
    score = np.linspace(0.2, 0.7, 8)[:, None] + np.array([0, 0.1, 0.2])
    score[:, 1] = [0, 0, 0, 0, 1, 1, 1, 1]
    found = fractional(rows_of(score, trace), DESIGN)
    assert found["note"] == "separated in 1 layer"
    assert not {"r2_both", "r2_diff", "chance", "gain"} & set(found)
    assert 0 < found["r2_layer"] < 1
    score[3, 1], score[4, 1] = 1, 0  # now they overlap
    assert fractional(rows_of(score, trace), DESIGN)["note"] == ""
    table = fractional_table(
        rows_of(score, trace).assign(method="rome", problem="p", trace_module="mlp", trace_window=5),
        ["score"], ["trace"], DESIGN,
    )  # fmt: skip
    assert table["r2_both"].notna().all()


def test_what_separates() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0])
    for y, parted in (
        ([0, 0, 1, 1], True), ([1, 1, 0, 0], True), ([0, 1, 0, 1], False), ([0, 0, 0, 0.3], True),
        ([0, 0.3, 0, 0], False), ([0, 0.3, 1, 1], True), ([0.2, 0.3, 1, 1], False), ([0, 0, 0, 0], False),
        ([1, 1, 1, 1], False), ([0.1, 0.2, 0.3, 0.4], False),
    ):  # fmt: skip
        assert is_separated(x, np.array(y, dtype=float)) == parted, y
        _, ended = logit_residuals(x[None], np.array(y, dtype=float), np.ones((1, 4), dtype=bool))
        assert ended[0] or parted, y


def test_layers_where_nothing_varies_are_fitted_by_their_mean() -> None:
    rows = noisy(12, 5, 2.0)
    rows.loc[rows["layer"] == 0, "score"] = 0.0
    rows.loc[rows["layer"] == 1, "score"] = 1.0
    rows.loc[rows["layer"] == 2, "trace"] = 0.25
    found = fractional(rows, DESIGN)
    assert found["note"] == ""
    three = rows[rows["layer"] > 1]
    left = fit_lines(profiles(three)).left
    assert fit_lines(profiles(rows)).left == pytest.approx(left)
    assert np.isfinite([found["ame"], found["ame_low"], found["chance"]]).all()
    assert found["at_floor"] == found["at_ceiling"] == pytest.approx(1 / 5)


def test_too_little_is_said_and_not_computed() -> None:
    rows = noisy(6, 4, 2.0)
    two = fractional(rows[rows["fact_id"].isin(["f000", "f001"])], DESIGN)
    assert two["note"] == "fewer than 3 facts"
    assert fractional(rows.assign(score=0.5), DESIGN)["note"] == "the score does not vary"
    assert fractional(rows[rows["layer"] == 1], DESIGN)["note"] == "one layer"
    flat = fractional(rows.assign(trace=0.3), DESIGN)
    assert flat["note"] == "the trace does not vary within facts"
    assert flat["r2_diff"] == pytest.approx(0, abs=1e-12)
    assert np.isnan(flat["ame"])


def test_a_row_for_each_regression_and_the_same_each_time() -> None:
    run = make_run(6, 5)
    scores = with_harm(score_table(run.edits, run.facts, run.trace, 0.02), run.edits, 0.5)
    wanted = (["rewrite", "overall"], ["fraction", "effect"])
    table = fractional_table(scores, *wanted, DESIGN)
    linear = regression_table(scores, *wanted, DESIGN)
    assert list(table.columns) == list(FRACTIONAL_COLUMNS)
    assert len(table) == len(PROBLEMS) * 2 * 2 == len(linear)
    keys = list(FRACTIONAL_COLUMNS[:9])
    pd.testing.assert_frame_equal(table[keys], linear[keys])
    assert table["r2_layer"].to_numpy() == pytest.approx(linear["r2_layer"].to_numpy(), abs=1e-9)
    one = scores.query("problem == 'fact_erasure'")["rewrite"].dropna()
    erasure = table.query("problem == 'fact_erasure' and score == 'rewrite'").iloc[0]
    assert (erasure["at_floor"], erasure["at_ceiling"]) == ((one <= 0.01).mean(), (one >= 0.99).mean())
    pd.testing.assert_frame_equal(table, fractional_table(scores, *wanted, DESIGN), check_exact=True)
