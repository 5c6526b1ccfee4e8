"""Other settings: each row is the main path's regression on other traces or facts, and how many reject by chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.layers import layer_table
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.regression import Design, regression_table
from pipeline.analysis.robustness import (
    COUNT_COLUMNS,
    ROBUSTNESS_COLUMNS,
    Asked,
    _Dealt,
    _rejections,
    by_layer,
    concentration,
    count_table,
    robustness_table,
)
from pipeline.errors import UserError

DESIGN = Design(keep_null_layers=False, folds=3, plan=Resampling(samples=60, permutations=199, confidence=0.95, seed=0))
ASKED = Asked(
    score="rewrite", measure="fraction", window=1, measures=("fraction", "effect"), layers=(0, 2, 3, 9),
    known=("greedy", 0.5), concentrated=0.5, success=0.9,
)  # fmt: skip
FACTS, LAYERS = 12, 4


def world(*, helpful: bool) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores, traces and facts of 12 facts of two relations at 4 layers, the last of which does not act.

    helpful: whether the traces of the window 3 are the scores themselves; the run's own are noise.
    """
    rng = np.random.default_rng(4)
    score = rng.uniform(0, 0.85, (FACTS, LAYERS))
    score[:4, 0] = 0.95  # four facts can be edited well
    ids = [f"f{f:02d}" for f in range(FACTS)]
    grid = pd.DataFrame(
        [(ids[f], layer) for f in range(FACTS) for layer in range(LAYERS)], columns=["fact_id", "layer"]
    )
    scores = pd.concat(
        [
            grid.assign(
                problem="error_injection", method="rome", window=1, trace_module="mlp",
                trace_window=window, relation=np.where(grid["fact_id"] < "f06", "r", "s"),
                acts=grid["layer"] < LAYERS - 1, rewrite=score.ravel(),
            )
            for window in (1, 2)
        ]
    )  # fmt: skip
    noise = rng.uniform(0.1, 1, (3, FACTS, LAYERS))

    def traced(variation: str, value: str, fraction: np.ndarray, effect: np.ndarray) -> pd.DataFrame:
        made = {"fraction": fraction.ravel(), "effect": effect.ravel()}
        return grid.assign(variation=variation, value=value, **made, last_subject=0.0, last_subject_fraction=0.0)

    traces = pd.concat(
        [
            traced("run", "", noise[0], noise[1]),
            traced("window", "3", score if helpful else noise[2], noise[2]),
            traced("corruption and metric", "replace, probability", noise[2], noise[2])[: 9 * LAYERS],
        ],
        ignore_index=True,
    )
    facts = pd.DataFrame(
        {"fact_id": ids, "greedy_correct": True, "p_true": [0.4] * 2 + [0.6] * (FACTS - 2), "relation": "r"}
    )
    return scores, traces, facts


@pytest.fixture(scope="module")
def found() -> tuple[pd.DataFrame, pd.DataFrame]:
    return robustness_table(*world(helpful=True), ASKED, DESIGN)


def test_a_row_for_each_variation_that_leaves_facts_out_or_has_other_traces(
    found: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    table, count = found
    assert tuple(table.columns) == ROBUSTNESS_COLUMNS
    assert tuple(count.columns) == COUNT_COLUMNS
    rows = table[["variation", "value", "n_facts", "n_left_out"]].to_numpy().tolist()
    assert rows == [
        ["run", "", 12, 0], ["window", "3", 12, 0], ["corruption and metric", "replace, probability", 9, 3],
        ["measure", "effect", 12, 0], ["edited layers", "3 of 4", 12, 0],
        ["known facts", "p >= 0.5", 10, 2], ["concentrated traces", "top 50%", 6, 6],
        ["successful edits", "best >= 0.9", 4, 8],
    ]  # fmt: skip  # all are greedy, which is then no variation
    assert (table["edit_window"] == 1).all()


def test_edits_at_some_layers_are_regressed_as_if_there_were_no_others(
    found: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    scores, traces, _ = world(helpful=True)
    own = traces[traces["variation"] == "run"]
    beside = scores[scores["trace_window"] == 1].merge(own, on=["fact_id", "layer"])
    regressed = regression_table(beside[beside["layer"].isin([0, 2])], ["rewrite"], ["fraction"], DESIGN).iloc[0]
    row = found[0].set_index("variation").loc["edited layers"]  # layer 3 does not act
    for name in ("r2_layer", "r2_both", "gain", "within_slope"):
        assert row[name] == pytest.approx(regressed[name], abs=1e-12)
    assert row["r2_layer"] != pytest.approx(found[0]["r2_layer"][0], rel=1e-3)
    every = replace(ASKED, layers=tuple(range(LAYERS)))
    assert "edited layers" not in set(robustness_table(*world(helpful=True), every, DESIGN)[0]["variation"])


def test_the_run_s_own_row_is_that_of_the_main_path(found: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    scores, traces, _ = world(helpful=True)
    own = traces[traces["variation"] == "run"]
    beside = scores[scores["trace_window"] == 1].merge(own, on=["fact_id", "layer"])
    regressed = regression_table(beside, ["rewrite"], ["fraction"], DESIGN).iloc[0]
    row = found[0].iloc[0]
    for name in (
        "r2_layer",
        "r2_both",
        "gain",
        "gain_low",
        "gain_bound",
        "permutation_pvalue",
        "within_slope",
        "cv_gain",
    ):
        assert row[name] == pytest.approx(regressed[name], abs=1e-12)
    values = own[["fact_id", "layer", "fraction"]].set_axis(["fact_id", "layer", "value"], axis=1)
    chosen = layer_table(beside, ["rewrite"], {"": values}, DESIGN.plan, keep_null_layers=False).set_index("choice")
    assert row["regret"] == pytest.approx(chosen.loc["fixed", "regret"])
    assert row["traced"] == pytest.approx(chosen.loc["traced", "mean"])
    assert row["fixed"] - row["traced"] == pytest.approx(row["regret"])


def test_traces_that_are_the_scores_are_found_and_dealt_ones_are_where_chance_is(
    found: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    table, (count,) = found[0], found[1].to_dict("records")
    helpful = table.iloc[1]
    assert helpful["r2_both"] == pytest.approx(1)
    assert helpful["permutation_pvalue"] == pytest.approx(1 / 200)
    assert helpful["gain"] > helpful["dealt_high"]
    assert helpful["regret"] <= 0
    there = table[table["dealt_low"].notna()]
    noise = there.drop(index=1)
    assert (noise["dealt_low"] < 0).all()
    assert (noise["dealt_high"] > 0).all()
    tested = table[table["n_facts"] >= 10]
    assert count["tests"] == len(tested) == 5
    assert count["expected"] == pytest.approx(0.25)
    assert count["rejected"] == (tested["permutation_pvalue"] <= 0.05).sum() >= 1
    assert count["rejected_holm"] == 1
    assert table.loc[table["n_facts"] < 10, "permutation_holm"].isna().all()
    assert helpful["permutation_holm"] == pytest.approx(5 / 200)
    assert count["joint_tests"] == 4  # the rows of all facts
    assert 0 < count["joint_expected"] <= 0.25


def test_a_run_s_other_traces_and_edits_of_facts_that_were_not_traced_do_not_count() -> None:
    scores, traces, facts = world(helpful=False)
    fewer = traces[traces["fact_id"] < "f06"]
    asked = replace(ASKED, layers=None, known=(), concentrated=None, success=None, measures=("fraction",))
    table, _ = robustness_table(scores, fewer, facts, asked, DESIGN)
    assert table["n_facts"].tolist() == [6, 6, 6]
    with pytest.raises(UserError, match=r"other facts than data/scores\.parquet"):
        robustness_table(scores, traces.assign(fact_id="another"), facts, asked, DESIGN)


def test_concentration_is_the_share_in_the_best_window() -> None:
    effect = {"a": [0.0, 3.0, 1.0, -5.0], "b": [1.0, 1.0, 1.0, 1.0], "c": [-1.0, 0.0, 0.0, 0.0]}
    own = pd.DataFrame(
        [(name, layer, value) for name, values in effect.items() for layer, value in enumerate(values)],
        columns=["fact_id", "layer", "effect"],
    )
    for window, expected in ((1, [0.75, 0.25]), (2, [1.0, 0.5]), (3, [1.0, 0.75]), (9, [1.0, 1.0])):
        shares = concentration(own, window)
        assert shares[["a", "b"]].tolist() == pytest.approx(expected)
        assert np.isnan(shares["c"])  # nothing to be concentrated


def test_measures_of_each_variation_are_taken_apart() -> None:
    cells = pd.DataFrame(
        {
            "fact_id": "a", "module": "mlp", "window": 5, "layer": 0, "variation": ["run", "run", "noise", "noise"],
            "value": ["", "", "1", "1"], "token_role": ["last_subject", "last_token"] * 2,
            "effect": [0.1, 0.3, 0.5, 0.2], "fraction": [0.2, 0.6, 1.0, 0.4],
        }
    )  # fmt: skip
    table = by_layer(cells).set_index("variation")
    assert table.loc["run", ["fraction", "effect", "last_subject"]].tolist() == [0.6, 0.3, 0.1]
    assert table.loc["noise", ["fraction", "effect", "last_subject_fraction"]].tolist() == [1.0, 0.5, 1.0]


def test_tests_that_are_one_and_the_same_reject_together() -> None:
    """Nothing to find in 40 rows of one test: no more reject than would in one, and the joint test knows it."""
    values = np.random.default_rng(0).uniform(size=400)
    counts = _rejections(np.tile(values, (40, 1)), 0.05)
    assert set(counts) == {0, 40}
    assert (counts > 0).sum() == 20
    apart = _rejections(np.random.default_rng(1).uniform(size=(40, 400)), 0.05)
    assert (apart > 0).mean() > 0.5
    assert apart.mean() == pytest.approx(2.0)


def test_the_joint_test_is_of_the_largest_set_of_facts_and_its_p_counts_the_sample() -> None:
    rng = np.random.default_rng(0)
    whole = [_Dealt(facts=("a", "b"), observed=2.0, values=rng.uniform(size=99)) for _ in range(3)]
    other = _Dealt(facts=("a",), observed=0.0, values=rng.uniform(size=99))
    table = pd.DataFrame(
        {
            "n_facts": [20, 20, 20, 15, 4],
            "permutation_pvalue": [0.01, 0.01, 0.01, 1.0, np.nan],
            "permutation_holm": 0.04,
        }
    )
    (row,) = count_table(table, [*whole, other, None], 0.95).to_dict("records")
    assert (row["rows"], row["tests"], row["rejected"], row["joint_tests"], row["joint_rejected"]) == (5, 4, 3, 3, 3)
    assert row["expected"] == pytest.approx(0.2)
    assert row["joint_pvalue"] == pytest.approx(0.01)
    (none,) = count_table(table.assign(n_facts=5), [*whole, other, None], 0.95).to_dict("records")
    assert none["tests"] == none["rejected"] == 0
    assert np.isnan(none["joint_tests"])
