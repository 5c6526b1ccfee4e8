"""Methods side by side: worked out by hand, and what it would be if there were nothing to find."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.comparison import COMPARED, COMPARISON_COLUMNS, chosen_layers, comparison_table
from pipeline.analysis.profiles import Resampling
from pipeline.report.comparison import section

PLAN = Resampling(samples=200, permutations=99, confidence=0.95, seed=0)


def scores(overall: np.ndarray, method: str = "rome") -> pd.DataFrame:
    """Scores (facts, layers) as in scores.parquet, each under two trace variants."""
    facts, layers = overall.shape
    rows = [
        {
            "fact_id": f"f{f}", "problem": "error_injection", "method": method, "window": 1, "layer": 3 * layer,
            "trace_module": module, "collapsed": bool(layer == 1), **dict.fromkeys(COMPARED, overall[f, layer]),
        }
        for f in range(facts)
        for layer in range(layers)
        for module in ("mlp", "attn")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_layer_is_chosen_on_the_other_facts() -> None:
    """Fact 0 would choose layer 0 for itself; the others are best at layer 3, and fact 0 is scored there."""
    overall = np.array([[1.0, 0.2], [0.1, 0.8], [0.0, 0.9]])
    assert chosen_layers(pd.DataFrame(overall, columns=[0, 3])) == [3, 3, 0]
    table = comparison_table(scores(overall), PLAN)
    row = table.iloc[0]
    assert tuple(table.columns) == COMPARISON_COLUMNS
    assert (row["n_facts"], row["layer"], row["layers_chosen"]) == (3, 3, 2)
    assert row["overall"] == pytest.approx((0.2 + 0.8 + 0.0) / 3)
    assert row["collapsed"] == pytest.approx(2 / 3)
    assert row["overall_low"] <= row["overall"] <= row["overall_high"]


def test_where_layers_are_alike_the_best_of_many_looks_no_better() -> None:
    """Thirty layers of the same chance: the mean at the best layer chosen on the same facts is far above it."""
    overall = np.random.default_rng(0).uniform(size=(40, 30))
    table = comparison_table(scores(overall), PLAN)
    assert overall.mean(0).max() > 0.58
    assert table["overall"].item() < 0.55


def test_facts_without_a_score_and_ties() -> None:
    overall = np.array([[0.5, np.nan], [0.5, 0.5], [np.nan, np.nan]])
    table = comparison_table(scores(overall), PLAN)
    assert table["n_facts"].item() == 2
    assert table["layer"].item() == 0
    assert comparison_table(scores(overall[:1]), PLAN).empty


def test_a_reverse_score_is_of_the_facts_that_have_one() -> None:
    overall = np.random.default_rng(0).uniform(size=(60, 3))
    made = scores(overall)
    few = made["fact_id"].isin([f"f{f}" for f in range(30)])
    halved = made.assign(reverse=made["reverse"].where(few))
    table = comparison_table(halved, PLAN)
    assert (table["n_facts"].item(), table["n_reverse"].item()) == (60, 30)
    chosen = chosen_layers(pd.DataFrame(overall, columns=[0, 3, 6]))
    assert table["reverse"].item() == pytest.approx(np.mean([overall[f, chosen[f] // 3] for f in range(30)]))
    (row, _) = section(comparison_table(pd.concat([halved, scores(overall, "memit")]), PLAN))["rows"]
    assert row["overall_low"] is not None
    assert row["reverse_low"] is None
    none = comparison_table(made.assign(reverse=np.nan), PLAN)
    assert none["n_reverse"].item() == 0
    assert np.isnan(none["reverse"].item())
    assert none["overall"].item() == table["overall"].item()


def test_the_page_shows_methods_only_side_by_side_and_intervals_of_enough_facts() -> None:
    overall = np.random.default_rng(0).uniform(size=(40, 3))
    one = comparison_table(scores(overall), PLAN)
    assert section(one)["rows"] == []
    both = comparison_table(pd.concat([scores(overall), scores(overall[:12], "memit")]), PLAN)
    made = section(both)
    assert [row["method"] for row in made["rows"]] == ["rome", "memit"]
    assert made["intervals"]
    assert made["rows"][0]["overall_low"] is not None
    assert made["rows"][1]["overall_low"] is None
