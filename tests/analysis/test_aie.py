"""Average indirect effects: means worked out by hand, what is paired, and what a chosen peak is worth."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis import aie
from pipeline.analysis.profiles import Resampling

PLAN = Resampling(samples=400, permutations=2000, confidence=0.95, seed=0)
LAYERS = 2


def rows(
    fact: str, role: str, token: int, *effects: float, module: str = "hidden", window: int = 1, severed: str = "none"
) -> pd.DataFrame:
    """One token of one fact, an effect a layer."""
    clean, corrupt = {"a": (0.9, 0.5), "b": (0.6, 0.4), "c": (0.3, 0.4)}[fact]
    return pd.DataFrame(
        {
            "fact_id": fact, "module": module, "window": window, "severed": severed, "token_index": token,
            "token": "x", "token_role": role, "layer": range(len(effects)), "p_clean": clean, "p_corrupt": corrupt,
            "p_restored": corrupt + np.array(effects), "effect": effects,
        }
    )  # fmt: skip


def maps() -> pd.DataFrame:
    """Three facts; the subject of a has four tokens, that of b two, that of c one, which ends its prompt."""
    tables = [
        rows("a", "before_subject", 0, 0.0, 0.0),
        rows("a", "first_subject", 1, 0.1, 0.0),
        rows("a", "middle_subject", 2, 0.2, 0.4),
        rows("a", "middle_subject", 3, 0.4, 0.0),
        rows("a", "last_subject", 4, 0.3, 0.1),
        rows("a", "last_token", 5, 0.0, 0.4),
        rows("b", "first_subject", 0, 0.3, 0.1),
        rows("b", "last_subject", 1, 0.2, 0.4),
        rows("b", "last_token", 2, 0.0, 0.2),
        rows("c", "last_subject", 0, -0.2, 0.4),
        rows("a", "last_subject", 4, 0.1, 0.1, severed="mlp"),
        rows("b", "last_subject", 1, 0.1, 0.1, severed="mlp"),
        rows("c", "last_subject", 0, -0.3, 0.4, severed="mlp"),
        rows("a", "last_subject", 4, 0.05, 0.0, module="mlp", window=5),
    ]
    return pd.concat(tables, ignore_index=True)


def picked(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    for name, value in where.items():
        table = table[table[name] == value]
    return table


def test_tokens_are_averaged_within_a_fact_and_then_facts() -> None:
    table = aie.aie_table(maps(), PLAN)
    assert list(table.columns) == list(aie.AIE_COLUMNS)
    hidden = picked(table, module="hidden", severed="none")
    assert set(hidden["token_role"]) == {"first_subject", "middle_subject", "last_subject", "last_token"}
    found = {(row.token_role, row.layer): (row.effect, row.n_facts) for row in hidden.itertuples()}
    assert found["first_subject", 0] == (pytest.approx(0.2), 2)
    assert found["middle_subject", 0] == (pytest.approx(0.3), 1)  # (0.2 + 0.4) / 2, of a alone
    assert found["middle_subject", 1] == (pytest.approx(0.2), 1)
    assert found["last_subject", 0] == (pytest.approx(0.1), 3)
    assert found["last_subject", 1] == (pytest.approx(0.3), 3)
    assert found["last_token", 1] == (pytest.approx(0.3), 2)
    alone = picked(table, module="mlp")
    assert alone["window"].tolist() == [5, 5]
    assert alone["effect"].tolist() == [0.05, 0.0]
    assert alone[["low", "high"]].isna().to_numpy().all()  # one fact has no interval


def test_a_fact_with_more_middle_tokens_counts_no_more() -> None:
    more = pd.concat([maps(), rows("b", "middle_subject", 9, 0.9, 0.0)], ignore_index=True)
    table = picked(aie.aie_table(more, PLAN), module="hidden", severed="none", token_role="middle_subject", layer=0)
    assert table["effect"].item() == pytest.approx((0.3 + 0.9) / 2)  # over all tokens it would be 0.5


def test_intervals_hold_the_mean_and_stay_within_the_facts() -> None:
    table = picked(aie.aie_table(maps(), PLAN), module="hidden", severed="none", token_role="last_subject")
    assert (table["low"] <= table["effect"]).all()
    assert (table["effect"] <= table["high"]).all()
    assert table["low"].min() >= -0.2 - 1e-12
    assert table["high"].max() <= 0.4 + 1e-12


def test_the_total_effect() -> None:
    row = aie.ate_table(maps(), PLAN).iloc[0]
    assert (row["p_clean"], row["p_corrupt"]) == (pytest.approx(0.6), pytest.approx(1.3 / 3))
    assert row["effect"] == pytest.approx((0.4 + 0.2 - 0.1) / 3)
    assert -0.1 - 1e-12 <= row["low"] < row["effect"] < row["high"] <= 0.4 + 1e-12
    assert (row["n_facts"], row["n_lowered"], row["confidence"]) == (3, 2, 0.95)


def test_what_severing_takes_is_paired_by_fact() -> None:
    table = aie.severed_table(maps(), PLAN)
    assert list(table.columns) == list(aie.SEVERED_COLUMNS)
    assert table["token_role"].unique().tolist() == ["last_subject"]
    below, above = table.to_dict("records")
    assert (below["layer"], below["n_facts"]) == (0, 3)
    assert below["intact"] == pytest.approx(0.1)
    assert below["effect"] == pytest.approx(-0.1 / 3)
    assert below["taken"] == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    # Each fact loses 0.1 at least, though the effects themselves go from -0.3 to 0.3.
    assert 0.1 - 1e-12 <= below["low"] < below["high"] <= 0.2 + 1e-12
    assert above["taken"] == pytest.approx((0.0 + 0.3 + 0.0) / 3)


def test_nothing_severed_is_an_empty_table() -> None:
    table = aie.severed_table(picked(maps(), severed="none"), PLAN)
    assert table.empty
    assert list(table.columns) == list(aie.SEVERED_COLUMNS)


def test_peaks_are_of_models_that_are_not_severed() -> None:
    table = aie.peak_table(maps(), PLAN)
    assert list(table.columns) == list(aie.PEAK_COLUMNS)
    last = picked(table, module="hidden", token_role="last_subject").to_dict("records")
    assert len(last) == 1
    assert (last[0]["layer"], last[0]["n_layers"], last[0]["n_facts"]) == (1, LAYERS, 3)
    assert last[0]["effect"] == pytest.approx(0.3)
    alone = picked(table, module="mlp").iloc[0]
    assert (alone["layer"], alone["effect"]) == (0, 0.05)
    assert np.isnan(alone["held_out"])


def test_a_fact_s_layer_is_chosen_on_the_others() -> None:
    values = np.array([[0.3, 0.1], [0.2, 0.4], [-0.2, 0.4]])
    # Others than the first and the second: layer 1; others than the third: a tie, which the lower layer wins.
    values[0, 0] = 0.35
    assert aie.held_out(values) == pytest.approx((0.1 + 0.4 - 0.2) / 3)


def test_on_noise_the_peak_is_flattered_and_said_to_be_chance() -> None:
    rng = np.random.default_rng(0)
    peaks, held, chance = [], [], []
    plan = Resampling(samples=10, permutations=200, confidence=0.95, seed=0)
    for _ in range(200):
        values = rng.normal(size=(20, 30))
        peaks.append(values.mean(0).max())
        held.append(aie.held_out(values))
        chance.append(aie.by_chance(values, plan))
    assert np.mean(peaks) > 0.4  # 30 means of 20 normal numbers: 2.04 / sqrt(20)
    assert np.mean(chance) == pytest.approx(np.mean(peaks), rel=0.05)
    assert abs(np.mean(held)) < 0.05
    values = rng.normal(size=(20, 30)) + 5 * (np.arange(30) == 7)
    assert values.mean(0).max() > 3 * aie.by_chance(values, plan)
    assert aie.held_out(values) == pytest.approx(values.mean(0).max())


def test_by_chance_by_hand() -> None:
    """One layer: the mean of a signed sum, 0; two facts and two layers: four cases."""
    assert aie.by_chance(np.array([[1.0], [1.0]]), PLAN) == pytest.approx(0, abs=0.06)
    # Signs ++ give means (1, 0), -- (-1, 0), +- (0, 1), -+ (0, -1): largest 1, 0, 1, 0.
    assert aie.by_chance(np.array([[1.0, 1.0], [1.0, -1.0]]), PLAN) == pytest.approx(0.5, abs=0.04)


def test_the_order_of_rows_does_not_matter() -> None:
    mixed = maps().sample(frac=1, random_state=3)
    for name, table in aie.TABLES.items():
        keys = [key for key in ("module", "window", "severed", "token_role", "layer") if key in table(maps(), PLAN)]
        one, other = (
            table(frame, PLAN).sort_values(keys or ["effect"]).reset_index(drop=True) for frame in (maps(), mixed)
        )
        pd.testing.assert_frame_equal(one, other, obj=name)
