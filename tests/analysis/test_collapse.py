"""Which edits count as having disabled the model, what is said of them by layer, and R² without them."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.collapse import (
    COLLAPSE_COLUMNS,
    collapse_by_layer,
    collapse_table,
    r2_without_collapsed,
    totals,
    with_harm,
)
from pipeline.analysis.regression import fit_models
from pipeline.analysis.scores import score_table
from pipeline.tables import SCORES
from tests.analysis.synthetic import Run, make_run


@pytest.fixture
def run() -> Run:
    """Six facts; ROME's edits at layer 2 of error injection collapse the model for two of them, one without a loss."""
    run = make_run(6, 5)
    edits = run.edits
    at = (edits["problem"] == "error_injection") & (edits["layer"] == 2)
    for fact_id, loss, denominator in (("capital.000", 9.0, -1e-4), ("capital.001", np.inf, 2e-3)):
        rows = at & (edits["fact_id"] == fact_id)
        edits.loc[rows, ["text_loss_post", "denominator", "update_norm"]] = [loss, denominator, 40.0]
    return run


def scores_of(run: Run, nats: float = 0.5) -> pd.DataFrame:
    return with_harm(score_table(run.edits, run.facts, run.trace, 0.02), run.edits, nats)


def test_every_edit_has_its_harm_and_is_judged_by_the_rise(run: Run) -> None:
    scores = scores_of(run)
    assert list(scores.columns) == list(SCORES)
    collapsed = scores[scores["collapsed"]]
    assert set(collapsed["fact_id"]) == {"capital.000", "capital.001"}
    assert set(collapsed["layer"]) == {2}
    assert set(collapsed["problem"]) == {"error_injection"}
    assert scores["collapsed"].dtype == bool
    assert len(scores_of(run, 5.9).query("collapsed")) == 2
    assert list(scores_of(run, 6.1).query("collapsed")["fact_id"]) == ["capital.001"]  # an infinite loss always does
    assert not scores_of(run, 0.0101)["collapsed"].sum() > 2
    assert scores_of(run, 0.0099)["collapsed"].sum() == scores["text_loss_post"].notna().sum()
    failed = scores[scores["text_loss_post"].isna()]
    assert len(failed) == 1
    assert not failed["collapsed"].any()


def test_two_trace_variants_count_an_edit_once(run: Run) -> None:
    both = Run(facts=run.facts, edits=run.edits, trace=pd.concat([run.trace, run.trace.assign(window=1)]))
    table = collapse_table(scores_of(both), both.edits)
    pd.testing.assert_frame_equal(table, collapse_table(scores_of(run), run.edits))
    assert totals(table) == {"measured": 5 * 6 * 5 - 1, "collapsed": 2}
    assert len(r2_without_collapsed(scores_of(both), "rewrite", "fraction", keep_null_layers=False)) == 10


def test_by_method_problem_and_layer(run: Run) -> None:
    table = collapse_table(scores_of(run), run.edits)
    assert list(table.columns) == list(COLLAPSE_COLUMNS)
    assert len(table) == 5 * 5
    row = table.query("problem == 'error_injection' and layer == 2").iloc[0]
    assert (row["update_key"], row["n_edits"], row["n_collapsed"]) == ("prompt", 6, 2)
    assert row["text_loss_rise_max"] == row["text_loss_rise_mean"] == np.inf
    assert row["denominator_median"] == 0.5
    assert row["denominator_least"] == 1e-4
    assert row["update_norm_max"] == 40
    other = table.query("problem == 'error_injection' and layer == 3").iloc[0]
    assert (other["n_edits"], other["n_collapsed"]) == (5, 0)  # one failed
    assert other["text_loss_rise_mean"] == pytest.approx(0.01)
    shares = collapse_by_layer(table).set_index("layer")
    assert shares.loc[2, "share"] == pytest.approx(2 / 30)
    assert shares.loc[3, "n_edits"] == 29
    assert (shares.drop(2)["share"] == 0).all()


def test_text_that_was_not_measured(run: Run) -> None:
    run.edits[["text_loss_pre", "text_loss_post"]] = np.nan
    table = collapse_table(scores_of(run), run.edits)
    assert totals(table) == {"measured": 0, "collapsed": 0}
    assert table["text_loss_rise_max"].isna().all()
    assert table["update_norm_max"].notna().all()
    assert collapse_by_layer(table)["share"].isna().all()


@pytest.mark.parametrize("keep", [False, True])
def test_r2_with_and_without_the_collapsed_rows(run: Run, keep: bool) -> None:
    run.edits.loc[run.edits["layer"] == 4, "acts"] = False
    scores = scores_of(run)
    table = r2_without_collapsed(scores, "rewrite", "effect", keep_null_layers=keep).set_index("problem")
    assert table["n_collapsed"].to_dict() == dict.fromkeys(table.index, 0) | {"error_injection": 2}
    for problem, row in table.iterrows():
        rows = scores[(scores["problem"] == problem) & (scores["acts"] | keep)]
        rows = rows.assign(score=rows["rewrite"], trace=rows["effect"]).dropna(subset=["score"])
        assert row["n_rows"] == len(rows)
        whole, without = fit_models(rows), fit_models(rows[~rows["collapsed"]])
        assert (row["r2_layer"], row["r2_both"]) == (whole.r2_layer, whole.r2_both)
        assert (row["r2_layer_without"], row["r2_both_without"]) == (without.r2_layer, without.r2_both)
        assert (row["r2_layer"] != row["r2_layer_without"]) == (problem == "error_injection")


def test_r2_is_not_defined_where_too_few_facts_are_left(run: Run) -> None:
    run.edits["text_loss_post"] = run.edits["text_loss_post"].where(run.edits["fact_id"] > "capital.003", 99.0)
    row = r2_without_collapsed(scores_of(run), "rewrite", "fraction", keep_null_layers=False).iloc[0]
    assert row[["r2_layer", "r2_both"]].notna().all()
    assert row[["r2_layer_without", "r2_both_without"]].isna().all()
    everything = run.edits.assign(text_loss_post=99.0)
    gone = Run(facts=run.facts, trace=run.trace, edits=everything)
    row = r2_without_collapsed(scores_of(gone), "rewrite", "fraction", keep_null_layers=False).iloc[1]
    assert row["n_rows"] == row["n_collapsed"] == 30
    assert np.isnan(row["r2_layer_without"])
