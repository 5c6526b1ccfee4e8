"""Scores against hand-worked values, at their edges; the table of scores and what it leaves out."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.analysis.profiles import Resampling
from pipeline.analysis.scores import (
    SCORE_COLUMNS,
    count_edits,
    essence,
    fall,
    neighborhood,
    rewrite_by_layer_table,
    rise,
    score_table,
    trace_by_layer_table,
    trace_measures,
)
from pipeline.errors import UserError
from tests.analysis.synthetic import PROBLEMS, make_run

NAN = float("nan")
PLAN = Resampling(samples=200, permutations=40, confidence=0.9, seed=0)


@pytest.mark.parametrize(
    ("p", "p_new", "score"),
    [
        (0.2, 0.6, 0.5),  # 0.4 of the 0.8 that was left
        (0.0, 0.75, 0.75),
        (0.0, 0.0, 0.0),
        (0.0, 1.0, 1.0),
        (0.5, 1.0, 1.0),
        (0.5, 0.5, 0.0),
        (0.5, 0.2, 0.0),  # the wrong way
        (1.0, 1.0, NAN),  # nothing left to raise
        (1.0, 0.5, NAN),
        (NAN, 0.5, NAN),
        (0.5, NAN, NAN),
    ],
)
def test_rise(p: float, p_new: float, score: float) -> None:
    assert rise(p, p_new) == pytest.approx(score, nan_ok=True)


@pytest.mark.parametrize(
    ("p", "p_new", "score"),
    [
        (0.8, 0.2, 0.75),
        (1.0, 0.0, 1.0),
        (1.0, 1.0, 0.0),
        (0.02, 0.01, 0.5),
        (0.5, 0.7, 0.0),  # the wrong way
        (0.0, 0.0, NAN),  # nothing there to erase
        (0.0, 0.5, NAN),
        (0.5, NAN, NAN),
    ],
)
def test_fall(p: float, p_new: float, score: float) -> None:
    assert fall(p, p_new) == pytest.approx(score, nan_ok=True)


@pytest.mark.parametrize(
    ("p", "p_new", "score"),
    [
        (0.3, 0.3, 1.0),
        (0.0, 1.0, 0.0),  # as far as it can go
        (1.0, 0.0, 0.0),
        (0.5, 1.0, 0.0),
        (0.5, 0.25, 0.5),
        (0.2, 0.6, 0.5),  # 0.4 of at most 0.8
        (0.0, 0.0, 1.0),
        (1.0, 1.0, 1.0),
        (0.5, NAN, NAN),
    ],
)
def test_neighborhood(p: float, p_new: float, score: float) -> None:
    assert neighborhood(p, p_new) == pytest.approx(score, nan_ok=True)


@pytest.mark.parametrize(
    ("ppl", "ppl_new", "score"),
    [
        (4.0, 4.0, 1.0),
        (4.0, 5.0, 0.8),
        (4.0, 6.5, 0.5),
        (4.0, 3.0, 1.0),  # likelier than before
        (4.0, 9.0, 0.0),
        (4.0, float("inf"), 0.0),
        (float("inf"), float("inf"), NAN),
        (4.0, NAN, NAN),
        (NAN, 4.0, NAN),
    ],
)
def test_essence(ppl: float, ppl_new: float, score: float) -> None:
    assert essence(ppl, ppl_new) == pytest.approx(score, nan_ok=True)


probabilities = st.floats(0, 1)


@given(probabilities, probabilities, probabilities)
def test_scores_lie_between_0_and_1_and_follow_the_probability(p: float, new: float, other: float) -> None:
    low, high = sorted((new, other))
    for score in (rise, fall, neighborhood):
        value = float(score(p, new))
        possible = {rise: p < 1, fall: p > 0}.get(score, True)
        assert 0 <= value <= 1 if possible else np.isnan(value)
    if p < 1:
        assert float(rise(p, low)) <= float(rise(p, high))
        assert float(rise(p, 1.0)) == 1
        assert float(rise(p, min(p, new))) == 0
    if p > 0:
        assert float(fall(p, low)) >= float(fall(p, high))
        assert float(fall(p, 0.0)) == 1
        assert float(fall(p, max(p, new))) == 0
    near, far = sorted((new, other), key=lambda moved: abs(moved - p))
    assert float(neighborhood(p, near)) >= float(neighborhood(p, far))
    assert float(neighborhood(p, p)) == 1


def test_formulas_take_arrays() -> None:
    assert rise([0.0, 0.5], [0.5, 1.0]) == pytest.approx([0.5, 1.0])
    assert fall(np.array([[0.5], [1.0]]), 0.25) == pytest.approx(np.array([[0.5], [0.75]]))


def edit(kind: str, index: int, p_pre: float, p_post: float, **other: object) -> dict[str, object]:
    row = {"fact_id": "a", "problem": "error_injection", "method": "rome", "window": 1, "layer": 4}
    prompt = {
        "prompt_kind": kind,
        "prompt_index": index,
        "p_pre": p_pre,
        "p_post": p_post,
        "status": "ok",
        "acts": True,
    }
    return row | prompt | other


FACTS = pd.DataFrame({"fact_id": ["a", "b"], "relation": ["capital", "language"]})
TRACE = pd.DataFrame(
    {
        "fact_id": "a",
        "module": "mlp",
        "window": 5,
        "token_index": [0, 1, 2],
        "token_role": ["before_subject", "last_subject", "last_token"],
        "layer": 4,
        "p_clean": 0.9,
        "p_corrupt": 0.1,
        "effect": [-0.1, 0.2, 0.4],
        "fraction": [0.0, 0.25, 0.5],
    }
)
EDITS = [
    edit("rewrite", 0, 0.2, 0.6),  # 0.5
    edit("paraphrase", 0, 0.0, 0.2),  # 0.2
    edit("paraphrase", 1, 0.5, 0.4),  # 0
    edit("paraphrase", 2, 1.0, 1.0),  # nothing to raise: left out of the mean
    edit("neighborhood", 0, 0.5, 0.25),  # 0.5
    edit("neighborhood", 1, 0.3, 0.3),  # 1
]


def test_a_row_by_hand() -> None:
    table = score_table(pd.DataFrame(EDITS), FACTS, TRACE, erasure_min_p=0.02)
    assert list(table.columns) == list(SCORE_COLUMNS)
    (row,) = table.to_dict("records")
    assert row["relation"] == "capital"
    assert (row["layer"], row["window"], row["trace_module"], row["trace_window"]) == (4, 1, "mlp", 5)
    assert row["rewrite"] == pytest.approx(0.5)
    assert row["paraphrase"] == pytest.approx(0.1)
    assert row["paraphrase_first"] == pytest.approx(0.2)
    assert row["neighborhood"] == pytest.approx(0.75)
    assert row["neighborhood_first"] == pytest.approx(0.5)
    assert row["acts"] is True
    assert row["overall"] == pytest.approx((0.5 + 0.1 + 0.75) / 3)
    assert (row["fraction"], row["effect"]) == (0.5, 0.4)
    assert (row["last_subject"], row["last_subject_fraction"]) == (0.2, 0.25)


def test_the_reverse_score_is_of_the_subject_and_no_part_of_overall() -> None:
    back = edit("reverse", 0, 0.2, 0.4)  # (0.4 - 0.2) / 0.8
    (row,) = score_table(pd.DataFrame([*EDITS, back]), FACTS, TRACE, 0.02).to_dict("records")
    (without,) = score_table(pd.DataFrame(EDITS), FACTS, TRACE, 0.02).to_dict("records")
    assert row["reverse"] == pytest.approx(0.25)
    assert np.isnan(without["reverse"])
    others = set(SCORE_COLUMNS) - {"reverse"}
    assert {name: row[name] for name in others} == {name: without[name] for name in others}
    erased = pd.DataFrame([{**each, "problem": "fact_erasure"} for each in (*EDITS, edit("reverse", 0, 0.2, 0.05))])
    assert score_table(erased, FACTS, TRACE, 0.02)["reverse"].item() == pytest.approx(0.75)
    worse = pd.DataFrame([*EDITS, edit("reverse", 0, 0.2, 0.1)])
    assert score_table(worse, FACTS, TRACE, 0.02)["reverse"].item() == 0
    failed = pd.DataFrame([{**each, "status": "failed: a", "p_post": np.nan} for each in (*EDITS, back)])
    assert np.isnan(score_table(failed, FACTS, TRACE, 0.02)["reverse"].item())


def test_overall_needs_all_its_parts() -> None:
    table = score_table(pd.DataFrame(EDITS[:1]), FACTS, TRACE, erasure_min_p=0.02)
    assert table["rewrite"].item() == pytest.approx(0.5)
    assert table[["paraphrase", "neighborhood", "overall"]].isna().all(axis=None)


def test_erasure_is_scored_by_its_fall_and_only_above_the_least_p() -> None:
    rows = [edit("rewrite", 0, p, p / 4, problem="fact_erasure", fact_id=f) for f, p in (("a", 0.4), ("b", 0.01))]
    trace = pd.concat([TRACE, TRACE.assign(fact_id="b")])
    table = score_table(pd.DataFrame(rows), FACTS, trace, erasure_min_p=0.02).set_index("fact_id")
    assert table.loc["a", "rewrite"] == pytest.approx(0.75)
    assert np.isnan(table.loc["b", "rewrite"])
    counts = count_edits(pd.DataFrame(rows), erasure_min_p=0.02)
    assert counts[["reason", "edits", "facts"]].values.tolist() == [
        ["", 1, 1],
        ["dropped: p(true) is below 0.02", 1, 1],
    ]


def test_failed_edits_have_no_score_and_are_counted() -> None:
    run = make_run(4, 6)
    failed = score_table(run.edits, run.facts, run.trace, 0.02).query("problem == 'error_injection' and layer == 3")
    values = failed.set_index("fact_id")[[*SCORE_COLUMNS[7:13]]]
    assert values.loc["capital.000"].isna().all()
    assert values.drop("capital.000").notna().all(axis=None)
    counts = count_edits(run.edits, 0.02).query("problem == 'error_injection'")
    assert counts[["reason", "edits", "facts"]].values.tolist() == [
        ["", 23, 4],
        ["the loss is not finite", 1, 1],
    ]


def test_every_trace_variant_has_its_rows_and_problems_keep_their_order() -> None:
    run = make_run(3, 5)
    trace = pd.concat([run.trace, run.trace.assign(window=1), run.trace.assign(module="attn")])
    table = score_table(run.edits, run.facts, trace, 0.02)
    assert len(table) == 3 * 3 * 5 * len(PROBLEMS)
    assert list(dict.fromkeys(table["problem"])) == list(PROBLEMS)
    assert not table.duplicated(["fact_id", "problem", "layer", "trace_module", "trace_window"]).any()


def test_trace_measures_without_a_last_subject_token() -> None:
    measures = trace_measures(TRACE[TRACE["token_role"] != "last_subject"])
    assert measures["effect"].item() == 0.4
    assert measures[["last_subject", "last_subject_fraction"]].isna().all(axis=None)


@pytest.mark.parametrize(
    ("edits", "facts", "trace", "told"),
    [
        ([*EDITS, EDITS[1]], FACTS, TRACE, r"fact a .* two rows for layer 4, paraphrase prompt 0"),
        (EDITS[1:], FACTS, TRACE, r"fact a .* no row of prompt_kind rewrite at layer 4"),
        (EDITS, FACTS.iloc[1:], TRACE, r"fact a is not in data/facts.parquet"),
        (
            EDITS,
            FACTS,
            TRACE.assign(layer=3),
            r"fact a was edited at layer 4 .* not traced there with module mlp",
        ),
    ],
)
def test_tables_that_do_not_fit_together(
    edits: list[dict[str, object]], facts: pd.DataFrame, trace: pd.DataFrame, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        score_table(pd.DataFrame(edits), facts, trace, 0.02)


def test_tables_by_layer_hold_means_over_facts() -> None:
    run = make_run(5, 4)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    rewrite = rewrite_by_layer_table(scores, PLAN)
    means = scores.groupby(["problem", "layer"])["rewrite"].agg(["mean", "count"])
    found = rewrite.set_index(["problem", "layer"]).loc[means.index]
    assert found["rewrite"].to_numpy() == pytest.approx(means["mean"].to_numpy())
    assert found["n"].tolist() == means["count"].tolist()
    assert (found["n"] == 4).sum() == 1  # the failed edit's layer
    assert (rewrite["low"] <= rewrite["rewrite"]).all()
    assert (rewrite["rewrite"] <= rewrite["high"]).all()

    traced = trace_by_layer_table(run.trace, PLAN).set_index(["line", "layer"])
    largest = run.trace.groupby(["fact_id", "layer"])["effect"].max().groupby("layer").mean()
    assert traced.loc["largest over all tokens", "effect"].to_numpy() == pytest.approx(largest.to_numpy())
    between = run.trace[run.trace["token_role"].isin(["first_subsequent", "further"])]
    assert traced.loc["tokens between subject and last", "effect"].to_numpy() == pytest.approx(
        between.groupby("layer")["effect"].mean().to_numpy()
    )


def test_tables_by_layer_count_a_trace_variant_once() -> None:
    run = make_run(4, 3)
    once = score_table(run.edits, run.facts, run.trace, 0.02)
    twice = score_table(run.edits, run.facts, pd.concat([run.trace, run.trace.assign(window=1)]), 0.02)
    tables = [rewrite_by_layer_table(scores, PLAN) for scores in (once, twice)]
    pd.testing.assert_frame_equal(*tables)


def test_an_edit_that_cannot_act_is_marked_and_keeps_its_scores() -> None:
    rows = pd.DataFrame([row | {"acts": False} for row in EDITS])
    (row,) = score_table(rows, FACTS, TRACE, erasure_min_p=0.02).to_dict("records")
    assert row["acts"] is False
    assert row["rewrite"] == pytest.approx(0.5)
