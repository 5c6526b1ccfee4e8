"""The layer question: worked out by hand, and what it says where there is nothing to find."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from benchmarks.layers import answers, held, made
from pipeline.analysis.comparison import interval_at_chosen
from pipeline.analysis.layers import CHOICES, LAYER_COLUMNS, lay_out, layer_table, named_layers, traces
from pipeline.analysis.profiles import Resampling, mean_interval
from pipeline.errors import UserError

PLAN = Resampling(samples=200, permutations=99, confidence=0.95, seed=0)
LAYERS = (0, 2, 5, 9)


def run(
    score: np.ndarray, trace: np.ndarray, relations: str | None = None, layers: tuple[int, ...] = LAYERS
) -> pd.DataFrame:
    """scores.parquet of scores and traces (facts, layers), under two trace windows, the second's traces reversed."""
    rows = [
        {
            "fact_id": f"f{f}", "relation": (relations or "r" * len(score))[f], "problem": "error_injection",
            "method": "rome", "window": 1, "layer": layer, "acts": True, "trace_module": "mlp", "trace_window": window,
            "rewrite": score[f, i], "fraction": trace[f, i] if window == 5 else trace[f, ::-1][i],
        }
        for f in range(len(score))
        for i, layer in enumerate(layers[: score.shape[1]])
        for window in (5, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def table(scores: pd.DataFrame, *, keep: bool = False, plan: Resampling = PLAN) -> pd.DataFrame:
    """The table of both localizers."""
    return layer_table(scores, ["rewrite"], traces(scores, ["fraction"]), plan, keep_null_layers=keep)


def by_choice(found: pd.DataFrame, localizer: str = "trace_mlp_w5_fraction") -> pd.DataFrame:
    return found[found["localizer"] == localizer].set_index("choice")


SCORE = np.array([[1.0, 0.5, 0.2, 0.1], [0.4, 0.8, 0.0, 0.0], [0.3, 0.9, 0.6, 0.6]])
TRACE = np.array([[0.1, 0.2, 0.9, 0.3], [0.0, 0.0, 0.0, 0.0], [0.2, 0.7, 0.1, 0.7]])


def test_every_number_of_a_table_by_hand() -> None:
    """Named: layers 5, 0 (all are tied) and 2 (tied with 9). Fixed: layers 2, 2 (0.7 against 0.65) and 0."""
    found = table(run(SCORE, TRACE))
    assert tuple(found.columns) == LAYER_COLUMNS
    assert list(found["localizer"]) == ["trace_mlp_w5_fraction"] * 5 + ["trace_mlp_w1_fraction"] * 5
    assert list(found["choice"]) == [*CHOICES, *CHOICES]
    at = by_choice(found)
    traced, fixed = (0.2 + 0.4 + 0.9) / 3, (0.5 + 0.8 + 0.3) / 3
    best, random = (1 + 0.8 + 0.9) / 3, (0.45 + 0.3 + 0.6) / 3
    # Others' traces name, for fact 0, layers 0 and 2; for fact 1, layers 5 and 2; for fact 2, layers 5 and 0.
    dealt = ((1 + 0.5) / 2 + (0 + 0.8) / 2 + (0.6 + 0.3) / 2) / 3
    assert at["mean"].to_dict() == pytest.approx(
        {"traced": traced, "fixed": fixed, "best": best, "random": random, "dealt": dealt}
    )
    assert at["regret"].to_dict() == pytest.approx(
        {
            "traced": 0, "fixed": fixed - traced, "best": best - traced, "random": random - traced,
            "dealt": dealt - traced,
        }
    )  # fmt: skip
    # Best layers are 0, 2 and 2; the traced ones are 5, 2 and 0 blocks from them, the fixed ones 2, 0 and 2.
    assert at.loc["traced", ["hit_1", "hit_2", "hit_5"]].to_list() == pytest.approx([1 / 3, 2 / 3, 1])
    assert at.loc["fixed", ["hit_1", "hit_2", "hit_5"]].to_list() == pytest.approx([1 / 3, 1, 1])
    assert at.loc["best", ["hit_1", "hit_2", "hit_5"]].to_list() == [1, 1, 1]
    assert at.loc["random", ["hit_1", "hit_2", "hit_5"]].to_list() == pytest.approx([1 / 4, 1 / 2, 3 / 4])
    assert at.loc["dealt", ["hit_1", "hit_2", "hit_5"]].to_list() == pytest.approx([1 / 3, 2 / 3, 1])
    assert at["layer"].fillna(-1).to_dict() == {"traced": 0, "fixed": 2, "best": 2, "random": -1, "dealt": -1}
    assert set(at["n_facts"]) == {3}
    assert at.loc[["traced", "dealt"], "low"].isna().to_list() == [False, True]
    assert at["permutation_pvalue"].isna().all()  # six ways to deal are too few


def test_intervals_are_by_facts_and_those_of_regret_by_pairs() -> None:
    rng = np.random.default_rng(1)
    score = rng.uniform(size=(30, 4)) * 0.1 + rng.uniform(size=(30, 1)) * 0.9
    at = by_choice(table(run(score, rng.uniform(size=(30, 4)))))
    whole = at.drop("dealt")
    assert ((whole["low"] <= whole["mean"]) & (whole["mean"] <= whole["high"])).all()
    assert ((whole["regret_low"] <= whole["regret"]) & (whole["regret"] <= whole["regret_high"])).all()
    width = at["high"] - at["low"]
    assert at.loc["random", "regret_high"] - at.loc["random", "regret_low"] < 0.3 * width["random"]
    assert at.loc["traced", ["regret", "regret_low", "regret_high"]].to_list() == [0, 0, 0]
    assert 0.01 <= at.loc["dealt", "permutation_pvalue"] <= 1


def test_layers_where_the_method_does_nothing_are_no_choice() -> None:
    scores = run(SCORE, TRACE)
    scores.loc[scores["layer"] == 5, "acts"] = False
    at = by_choice(table(scores))
    # Fact 0's trace now names layer 9, with 0.1.
    assert at.loc["traced", "mean"] == pytest.approx((0.1 + 0.4 + 0.9) / 3)
    assert at.loc["random", "mean"] == pytest.approx((1.6 / 3 + 1.2 / 3 + 1.8 / 3) / 3)
    assert by_choice(table(scores, keep=True)).equals(by_choice(table(run(SCORE, TRACE))))


def test_a_fact_is_edited_only_where_it_has_a_score_and_a_trace() -> None:
    score, trace = SCORE.copy(), TRACE.copy()
    score[0, 2] = np.nan  # a failed edit, at the layer that its trace names
    trace[2, 1] = np.nan
    at = by_choice(table(run(score, trace)))
    assert at.loc["traced", "mean"] == pytest.approx((0.1 + 0.4 + 0.6) / 3)
    assert at.loc["best", "mean"] == pytest.approx((1 + 0.8 + 0.6) / 3)
    # Fact 0's trace still names layer 5 for others; that of fact 2 names layer 9 to all.
    assert at.loc["dealt", "mean"] == pytest.approx(((1 + 0.1) / 2 + (0 + 0) / 2 + (0.6 + 0.3) / 2) / 3)


def test_a_fact_alone_gets_the_traces_of_all_others_and_one_alone_at_its_layers_is_left_out() -> None:
    at = by_choice(table(run(SCORE, TRACE, relations="aab")))
    assert at.loc["dealt", "mean"] == pytest.approx((1.0 + 0.0 + (0.6 + 0.3) / 2) / 3)
    score = SCORE.copy()
    score[0, 1:] = score[1:, 0] = np.nan
    found = by_choice(table(run(score, TRACE)))
    assert set(found["n_facts"]) == {2}
    assert found.loc["traced", "mean"] == pytest.approx((0.8 + 0.9) / 2)  # fact 1's lowest layer is now 2
    empty = table(run(SCORE[:1], TRACE[:1]))
    assert empty.empty
    assert tuple(empty.columns) == LAYER_COLUMNS
    nothing = run(SCORE, TRACE).assign(acts=False)
    assert table(nothing).empty


def test_the_nearest_of_several_best_layers_counts() -> None:
    score = np.array([[0.7, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.7]])
    trace = np.array([[0, 0, 0, 1.0], [0, 0, 1.0, 0]])
    at = by_choice(table(run(score, trace)))
    assert at.loc["traced", ["hit_1", "hit_2", "hit_5"]].to_list() == [0.5, 0.5, 1]


def test_a_trace_of_another_localizer_has_its_own_rows() -> None:
    scores = run(SCORE, TRACE)
    found = table(scores)
    reverse = by_choice(found, "trace_mlp_w1_fraction")
    assert reverse.loc["traced", "mean"] == pytest.approx((0.5 + 0.4 + 0.3) / 3)
    gradient = pd.DataFrame(
        {"fact_id": ["f0", "f1"] * 4, "layer": np.repeat(LAYERS, 2), "value": [0, 0, 0, 0, 1, 1, 0, 0]}
    )
    other = layer_table(scores, ["rewrite"], {"gradient": gradient}, PLAN, keep_null_layers=False)
    assert set(other["n_facts"]) == {2}  # the third fact has none
    assert other.loc[0, "mean"] == pytest.approx((0.2 + 0.0) / 2)


def test_two_windows_in_one_table_are_refused() -> None:
    scores = run(SCORE, TRACE)
    with pytest.raises(UserError, match="two rows for layer 0 of one"):
        table(pd.concat([scores, scores.assign(window=3)]))


@cache
def simulated(way: str) -> pd.DataFrame:
    return answers(way, 40, 12, 150, Resampling(samples=150, permutations=99, confidence=0.95, seed=0))


def mean_and_error(way: str, choice: str, column: str) -> tuple[float, float]:
    values = simulated(way).xs(choice, level="choice")[column].to_numpy(float)
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


@pytest.mark.parametrize("way", ["noise", "flat"])
def test_a_trace_that_says_nothing_is_a_random_layer_and_gains_nothing_on_a_fixed_one(way: str) -> None:
    random, error = mean_and_error(way, "random", "regret")
    assert abs(random) < 3 * error
    dealt, error = mean_and_error(way, "dealt", "regret")
    assert abs(dealt) < 3 * error
    fixed, error = mean_and_error(way, "fixed", "regret")
    assert fixed > -3 * error
    assert way == "flat" or fixed > 0.2
    traced, _ = mean_and_error(way, "traced", "hit_1")
    by_chance, _ = mean_and_error(way, "random", "hit_1")
    assert traced == pytest.approx(by_chance, abs=0.02)
    best, _ = mean_and_error(way, "best", "mean")
    assert best > mean_and_error(way, "fixed", "mean")[0] + 0.05  # by chance alone, where all layers are alike


def test_a_trace_of_good_layers_that_says_nothing_of_its_fact_beats_random_and_not_others_traces() -> None:
    """What "traced beats random" alone would take for localization."""
    assert mean_and_error("bump", "random", "regret")[0] < -0.1
    dealt, error = mean_and_error("bump", "dealt", "regret")
    assert abs(dealt) < 3 * error
    assert mean_and_error("bump", "fixed", "regret")[0] > 0.05
    assert simulated("bump").xs("dealt", level="choice")["permutation_pvalue"].le(0.05).mean() < 0.09


def test_a_trace_that_knows_its_fact_beats_the_fixed_layer() -> None:
    assert mean_and_error("own", "fixed", "regret")[0] < -0.02
    assert mean_and_error("own", "dealt", "regret")[0] < -0.05
    assert simulated("own").xs("dealt", level="choice")["permutation_pvalue"].le(0.05).mean() > 0.9
    perfect, _, relation = made("own", 40, 12, np.random.default_rng(0))
    grid = lay_out(perfect, perfect, relation)
    assert grid is not None
    assert grid.score[np.arange(40), named_layers(grid)[1][0]].mean() == pytest.approx(perfect.max(axis=1).mean())


@pytest.mark.parametrize("way", ["noise", "bump", "own", "flat"])
def test_intervals_of_the_fixed_layer_hold_what_it_scores_on_average(way: str) -> None:
    fixed = simulated(way).xs("fixed", level="choice")
    assert held(fixed, "mean") > 0.91
    assert held(fixed, "regret", "regret_") > 0.91


def test_without_choosing_anew_the_interval_is_far_too_narrow() -> None:
    """Where layers are alike, which one is chosen moves with each fact, and the mean scatters more than facts do."""
    score, trace, relation = made("flat", 40, 30, np.random.default_rng(0))
    grid = lay_out(score, trace, relation)
    assert grid is not None
    _, low, high = interval_at_chosen(grid.score, grid.score[None], PLAN)
    _, narrow_low, narrow_high, _ = mean_interval(grid.score[np.arange(40), grid.fixed][:, None], PLAN)
    assert high[0] - low[0] > 1.4 * (narrow_high[0] - narrow_low[0])
    again = interval_at_chosen(grid.score, grid.score[None], PLAN)
    assert (again[1], again[2]) == (low, high)


def test_the_same_layer_for_all_leaves_nothing_to_choose() -> None:
    """One layer far above the others: the interval is the plain one of its scores, but for centring."""
    rng = np.random.default_rng(0)
    score = np.column_stack([rng.uniform(0.5, 0.9, 40), rng.uniform(0, 0.1, 40)])
    mean, low, high = interval_at_chosen(score, score[None], PLAN)
    plain, plain_low, plain_high, _ = mean_interval(score[:, :1], PLAN)
    assert mean == pytest.approx(plain)
    assert [low[0], high[0]] == pytest.approx([plain_low[0], plain_high[0]], abs=0.005)
