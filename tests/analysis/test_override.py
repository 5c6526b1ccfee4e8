"""The override question's tables: worked out by hand on made-up traces, and what they say where nothing is to find."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.override import (
    ALL,
    LAYERS_COLUMNS,
    NONE,
    OVERRIDE,
    OVERRIDE_COLUMNS,
    TRACED,
    Least,
    layers_table,
    override_table,
)
from pipeline.analysis.profiles import Resampling

LAYERS, WINDOW = 10, 3
PLAN = Resampling(samples=200, permutations=99, confidence=0.95, seed=0)
LEAST = Least(change=0.1, effect=0.02)


def rows(
    fact: str,
    old: int,
    edited: int,
    name: str,
    effect: dict[int, float],
    p: tuple[float, float] = (0.0, 0.8),
    replaced: dict[int, float] | None = None,
) -> pd.DataFrame:
    """One object in one model. effect, replaced: by layer where they differ from 0 and from p after the edit."""
    half = WINDOW // 2
    at = np.arange(LAYERS)
    frame = pd.DataFrame(
        {
            "fact_id": fact, "method": "rome", "problem": "error_injection", "old_layer": old, "edited_layer": edited,
            "edit_first": edited, "edit_last": edited, "status": "ok", "object": name, "layer": at,
            "window_first": np.maximum(at - half, 0), "window_last": np.minimum(at + half, LAYERS - 1),
            "p_pre": p[0], "p_post": p[1], "p_corrupt": 0.25,
            "p_restored": [0.25 + effect.get(layer, 0.0) for layer in range(LAYERS)],
        }
    )  # fmt: skip
    put_in = [(replaced or {}).get(layer, p[1]) for layer in range(LAYERS)]
    return frame.assign(**{column: put_in for column in OVERRIDE if column not in frame})


def told(table: pd.DataFrame, edited: str, quantity: str, **more: str) -> pd.Series:
    found = table[(table["edited"] == edited) & (table["quantity"] == quantity)]
    for column, value in ({"object": "new"} | more).items():
        found = found[found[column] == value]
    assert len(found) == 1
    return found.iloc[0]


def test_where_a_peak_is_by_hand() -> None:
    made = pd.concat(
        [
            rows("a", 7, 2, "new", {3: 0.5, 8: 0.3}),  # at the edited block, and half as high at the old site
            rows("b", 7, 2, "new", {7: 0.5}),
            rows("c", 7, 2, "new", {5: 0.5}),
            rows("d", 3, 2, "new", {2: 0.5}),  # which of the two it is at can't be told
        ]
    )
    table = override_table(made, [2], LEAST, PLAN)
    assert list(table.columns) == list(OVERRIDE_COLUMNS)
    for edited in ("2", ALL):
        for quantity, mean in (
            ("peak_at_edited", 1 / 3), ("peak_at_old", 1 / 3), ("peak_elsewhere", 1 / 3),
            ("half_at_edited", 1 / 3), ("half_at_old", 2 / 3), ("half_at_both", 1 / 3),
        ):  # fmt: skip
            row = told(table, edited, quantity, case="apart")
            assert (row["mean"], row["n_facts"]) == (pytest.approx(mean), 3), quantity
        assert told(table, edited, "peak_at_edited", case="near")["n_facts"] == 1
    # A window of three holds a peak inside the model from 3 of 10 places.
    assert told(table, "2", "peak_at_edited", case="apart")["chance"] == pytest.approx(0.3)
    assert told(table, "2", "peak_elsewhere", case="apart")["chance"] == pytest.approx(0.4)
    assert told(table, "2", "half_at_old", case="apart")["chance"] == pytest.approx((6 + 3 + 3) / 30)
    effect = told(table, "2", "effect_at_old", case="apart")
    assert (effect["mean"], effect["chance"]) == pytest.approx((0.5 / 3, (0.8 + 0.5 + 0.5) / 30))
    assert effect["excess"] == pytest.approx(effect["mean"] - effect["chance"])


def test_a_peak_anywhere_is_at_both_places_as_often_as_by_chance() -> None:
    made = [  # every old site with every peak, and a lower one
        rows(f"{old}-{peak}", old, 4, "new", {peak: 0.5, (7 * peak + old) % LAYERS: 0.4})
        for old in range(LAYERS)
        for peak in range(LAYERS)
    ]
    table = override_table(pd.concat(made), [4], LEAST, PLAN)
    judged = table[table["quantity"].str.match("peak|half") & (table["case"] == "apart") & (table["edited"] == "4")]
    assert len(judged) == 6
    assert judged["mean"].min() > 0.1
    # Up to the windows that are cut off at the ends, which hold fewer peaks.
    assert judged["excess"].abs().max() < 0.06
    olds = judged[judged["quantity"].str.endswith("at_old")]
    assert (olds["others"] - olds["mean"]).abs().max() < 0.06


def test_others_are_other_facts_old_sites_and_the_fact_s_other_edits() -> None:
    # Both traces peak at block 0 whatever was edited: that is not of the fact's own old site.
    made = pd.concat(
        [rows(fact, old, at, "new", {0: 0.5}) for fact, old in (("a", 0), ("b", 1), ("c", 9)) for at in (4, 7)]
    )
    table = override_table(made, [4, 7], LEAST, PLAN)
    row = told(table, ALL, "peak_at_old", case="apart")
    assert row["mean"] == pytest.approx(2 / 3)
    assert row["others"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert told(table, ALL, "peak_at_edited", case="apart")["others"] == 0
    at_own = pd.concat([rows("a", 0, at, "new", {at: 0.5}) for at in (4, 7)])
    row = told(override_table(at_own, [4, 7], LEAST, PLAN), ALL, "peak_at_edited", case="apart")
    assert (row["mean"], row["others"]) == (1, 0)
    assert np.isnan(told(override_table(at_own, [4, 7], LEAST, PLAN), ALL, "peak_at_old", case="apart")["others"])


def test_what_is_kept_by_hand() -> None:
    made = pd.concat(
        [
            rows("a", 7, 2, "new", {}, (0.2, 0.7), {7: 0.3, 4: 0.45, 9: -9}),
            rows("b", 2, 7, "new", {}, (0.2, 0.7), {2: 0.45}),
            rows("c", 3, 2, "new", {}, (0.2, 0.7), {3: 0.2}),
            rows("d", 7, 2, "new", {}, (0.2, 0.25), {7: 0.0}),  # an edit that did too little
        ]
    )
    table = override_table(made, [2, 7], LEAST, PLAN)
    above = told(table, ALL, "kept_unedited", case="above")
    assert (above["mean"], above["n_facts"]) == (pytest.approx(0.2), 1)
    # Of layer 4 alone: windows below hold the edit, those above the old site's blocks, or are cut off.
    assert above["chance"] == pytest.approx(0.5)
    below = told(table, ALL, "kept_unedited", case="below")
    assert (below["mean"], below["chance"]) == pytest.approx((0.5, 1))
    holds = told(table, ALL, "kept_unedited", case="holds")
    assert holds["mean"] == pytest.approx(0)
    assert np.isnan(holds["chance"])
    assert told(table, "2", "change")["n_facts"] == 3
    least = told(table, "2", "kept_least_above")
    assert least["mean"] == pytest.approx(((-9 - 0.2) / 0.5 + 1) / 2)


def test_the_true_object_s_share_is_of_its_fall_and_of_p_where_nothing_was_edited() -> None:
    made = pd.concat(
        [
            rows("a", 7, -1, "true", {7: 0.5}, (0.8, 0.8), {7: 0.2}),
            rows("a", 7, 2, "true", {7: 0.01}, (0.8, 0.0), {7: 0.2}),
            rows("a", 7, 7, "true", {}, (0.8, 0.0), {7: 0.8}),
            rows("b", 7, 2, "true", {}, (0.2, 0.8), {7: 0.2}),  # it rose
        ]
    )
    table = override_table(made, [2], LEAST, PLAN)
    assert told(table, NONE, "kept_zeroed", object="true")["mean"] == pytest.approx(0.25)
    assert told(table, NONE, "peak_at_old", object="true")["mean"] == 1
    kept = told(table, "2", "kept_unedited", object="true")
    assert (kept["mean"], kept["n_facts"]) == (pytest.approx(0.75), 1)
    assert told(table, TRACED, "kept_unedited", object="true")["mean"] == 0
    # Its peak is too low to be one, and 'traced' is no layer that all facts share.
    assert not ((table["quantity"] == "peak_at_old") & (table["edited"] != NONE)).any()
    assert "7" not in set(table["edited"])
    assert "kept_unedited" not in set(table.loc[table["edited"] == NONE, "quantity"])


def test_by_layer() -> None:
    made = pd.concat(
        [
            rows("a", 7, -1, "new", {1: 0.2}),
            rows("a", 7, 2, "new", {1: 0.5}, (0.0, 0.8), {4: 0.4}),
            rows("b", 7, 2, "new", {1: 0.3}, (0.0, 0.8), {4: 0.8}),
            rows("b", 7, 7, "new", {1: 0.3}),
        ]
    )
    table = layers_table(made, [2], LEAST, PLAN)
    assert list(table.columns) == list(LAYERS_COLUMNS)
    found = table.set_index(["edited", "quantity", "layer"])["mean"]
    assert found[NONE, "effect", 1] == pytest.approx(0.2)
    assert found["2", "effect", 1] == pytest.approx(0.4)
    assert found["2", "kept_unedited", 4] == pytest.approx(0.75)
    assert found["2", "kept_zeroed", 3] == pytest.approx(1)
    assert (found[NONE, "old_site", 7], found[NONE, "old_site", 6]) == (1, 0)
    assert set(table["edited"]) == {NONE, "2"}
    assert set(table.loc[table["edited"] == "2", "n_facts"]) == {2}


def test_without_an_edit_that_was_made_there_are_no_rows() -> None:
    failed = rows("a", 7, 2, "new", {}).assign(p_restored=np.nan, status="failed: a")
    assert override_table(failed, [2], LEAST, PLAN).empty
    assert list(layers_table(failed, [2], LEAST, PLAN).columns) == list(LAYERS_COLUMNS)
