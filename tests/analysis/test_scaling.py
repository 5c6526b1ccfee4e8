"""Tables of many edits at once against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.counterfact import harmonic_mean
from pipeline.analysis.profiles import Resampling, mean_interval
from pipeline.analysis.scaling import (
    MIXTURE_COLUMNS,
    PLACE_COLUMNS,
    RELATION_COLUMNS,
    SCALING_COLUMNS,
    by_fact,
    mixtures_table,
    places_table,
    relations_table,
    scaling_table,
)
from tests.analysis.test_counterfact import ONE, THREE, TWO, edit

PLAN = Resampling(samples=400, permutations=40, confidence=0.9, seed=0)


def rows(frame: pd.DataFrame, *, n: int, study: str = "scaling", batch: int = 0, entropy: float = np.nan,
         relation: str = "P1", method: str = "memit") -> pd.DataFrame:  # fmt: skip
    """A fact's prompts as data/measures/scaling.parquet has them."""
    own = frame["prompt_kind"] == "rewrite"
    of = {"study": study, "batch": batch, "n_edits": n, "relation": relation, "method": method}
    return frame.assign(**of, text="", entropy=np.where(own, entropy, np.nan))


# ES, PS, NS of ONE, TWO and THREE: (1, .5, .5), (0, 1, 1), (1, 1, .5).
THREE_AT_ONCE = pd.concat([
    rows(ONE, n=3, entropy=5.0), rows(TWO, n=3, relation="P2"), rows(THREE, n=3, entropy=6.0),
])  # fmt: skip
ALONE = pd.concat([rows(ONE, n=1), rows(TWO, n=1, batch=1, relation="P2")])
PLAIN = pd.concat([
    rows(frame, n=0, method="unedited", relation=relation, entropy=6.5)
    for frame, relation in ((ONE, "P1"), (TWO, "P2"), (THREE, "P1"))
]).assign(layer=-1)  # fmt: skip


def test_a_row_for_each_method_and_number_by_hand() -> None:
    table = scaling_table(pd.concat([PLAIN, ALONE, THREE_AT_ONCE]), ["memit", "rome"], [3, 1], PLAN)
    assert list(table.columns) == list(SCALING_COLUMNS)
    assert list(zip(table["method"], table["n_edits"], strict=True)) == [
        ("unedited", 0), ("memit", 1), ("memit", 3), ("rome", 1), ("rome", 3),
    ]  # fmt: skip
    plain, one, three, missing = (table.iloc[i] for i in (0, 1, 2, 3))
    assert (plain["n_batches"], plain["layer"], plain["n_facts"], plain["n_texts"]) == (0, -1, 3, 3)
    assert plain["GE"] == pytest.approx(6.5)
    assert (one["n_batches"], one["n_facts"], one["n_texts"]) == (2, 2, 0)
    assert list(one[["ES", "PS", "NS"]]) == pytest.approx([0.5, 0.75, 0.75])
    assert one["S"] == pytest.approx(3 / (2 + 4 / 3 + 4 / 3))
    assert np.isnan(one["GE"])
    assert (three["layer"], three["n_batches"], three["n_facts"], three["n_texts"]) == (2, 1, 3, 2)
    assert list(three[["ES", "PS", "NS"]]) == pytest.approx([2 / 3, 2.5 / 3, 2 / 3])
    assert three["S"] == pytest.approx(3 / (1.5 + 1.2 + 1.5))
    assert three["GE"] == pytest.approx(5.5)
    assert three["GE_low"] < 5.5 < three["GE_high"]
    _, low, high, _ = mean_interval(np.array([[1.0], [0.0], [1.0]]), PLAN)
    assert (three["ES_low"], three["ES_high"]) == (low[0], high[0])
    # A number for which there were too few facts, or a method whose batches are not there.
    assert (missing["n_facts"], missing["n_batches"]) == (0, 0)
    assert missing[["S", "ES", "PS", "NS", "GE"]].isna().all()


def test_facts_whose_edit_failed_are_left_out() -> None:
    failed = rows(TWO, n=3, relation="P2").assign(status="failed: no", p_post=np.nan, p_baseline_post=np.nan)
    facts = by_fact(pd.concat([rows(ONE, n=3), failed, rows(THREE, n=3)]))
    assert list(facts.index) == ["one", "three"]


def test_relations_are_those_of_the_largest_number_in_the_order_of_s() -> None:
    table = relations_table(pd.concat([PLAIN, ALONE, THREE_AT_ONCE]), ["memit"], PLAN)
    assert list(table.columns) == list(RELATION_COLUMNS)
    found = table[["relation", "method", "n_edits", "n_facts"]].to_records(index=False).tolist()
    # S of P1 is that of (1, .75, .5), of P2, whose ES is 0, it is 0.
    assert found == [("P1", "unedited", 0, 2), ("P1", "memit", 3, 2), ("P2", "unedited", 0, 1), ("P2", "memit", 3, 1)]
    edited = table[table["method"] == "memit"]
    assert list(edited["S"]) == pytest.approx([3 / (1 + 4 / 3 + 2), 0])


def test_a_mixture_is_compared_on_the_same_facts_by_hand() -> None:
    better = edit("two", "r.4-.3 p.2-.1 n.1-.2")  # (1, 1, 1): edited beside its own relation
    whole = pd.concat([
        PLAIN,
        rows(ONE, n=2, study="P1"), rows(THREE, n=2, study="P1"),
        rows(better, n=2, study="P2", relation="P2"),
        rows(edit("four", "r.0-.9 p.0-.9 n.9-.0"), n=2, study="P2", relation="P2"),  # not in the mixture
        rows(ONE, n=2, study="P1+P2"), rows(TWO, n=2, study="P1+P2", relation="P2"),
    ])  # fmt: skip
    table = mixtures_table(whole, PLAN)
    assert list(table.columns) == list(MIXTURE_COLUMNS)
    (row,) = table.to_dict("records")
    assert (row["relation_a"], row["relation_b"], row["method"], row["n_edits"]) == ("P1", "P2", "memit", 2)
    assert row["n_facts"] == 2
    assert [row[name] for name in ("ES", "PS", "NS")] == pytest.approx([0.5, 0.75, 0.75])
    assert [row[f"{name}_apart"] for name in ("ES", "PS", "NS")] == pytest.approx([1, 0.75, 0.75])
    assert [row[f"{name}_difference"] for name in ("ES", "PS", "NS")] == pytest.approx([-0.5, 0, 0])
    together, apart = (harmonic_mean(np.array(parts)) for parts in ([0.5, 0.75, 0.75], [1, 0.75, 0.75]))
    assert row["S_difference"] == pytest.approx(float(together - apart))
    assert row["S_difference_low"] <= row["S_difference"] <= row["S_difference_high"]
    assert row["PS_difference_low"] == row["PS_difference_high"] == 0
    assert mixtures_table(PLAIN, PLAN).empty


def test_places_are_means_over_facts_of_each_window_and_layer() -> None:
    here = [frame.assign(window=window, layer=layer, acts=layer < 5)
            for frame in (ONE, TWO) for window in (3, 1) for layer in (5, 2)]  # fmt: skip
    table = places_table(pd.concat(here), PLAN)
    assert list(table.columns) == list(PLACE_COLUMNS)
    assert table[["window", "layer", "n_facts", "acts"]].to_records(index=False).tolist() == [
        (1, 2, 2, True), (1, 5, 2, False), (3, 2, 2, True), (3, 5, 2, False),
    ]  # fmt: skip
    assert list(table["NS"]) == pytest.approx([0.75] * 4)
    assert places_table(pd.DataFrame(), PLAN).empty
