"""Essence scores by layer and beside traces: worked out by hand on a few rows."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.essence import (
    ESSENCE_COLUMNS,
    R2_COLUMNS,
    beside_traces,
    essence_by_layer,
    with_score,
)
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.regression import Design, regression_table
from pipeline.analysis.scores import score_table
from pipeline.errors import UserError
from tests.analysis.synthetic import make_run

PLAN = Resampling(samples=200, permutations=99, confidence=0.95, seed=0)
NAN = float("nan")


def perplexities(*rows: tuple[str, str, int, float, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["fact_id", "problem", "layer", "perplexity_pre", "perplexity_post"])
    return frame.assign(method="rome", status=np.where(frame["perplexity_post"].isna(), "failed: a", "ok"))


def test_scores_by_hand() -> None:
    table = with_score(
        perplexities(
            ("a", "p", 0, 6.0, 7.0), ("a", "p", 1, 6.0, 6.0), ("a", "p", 2, 6.0, 5.0),
            ("b", "p", 0, 8.0, 13.0), ("b", "p", 1, 8.0, np.inf), ("b", "p", 2, 8.0, NAN),
        )
    )  # fmt: skip
    assert list(table.columns) == [
        "fact_id", "method", "problem", "layer", "perplexity_pre", "perplexity_post", "essence", "status",
    ]  # fmt: skip
    assert table["essence"].tolist()[:5] == pytest.approx([0.8, 1.0, 1.0, 0.0, 0.0])
    assert np.isnan(table["essence"][5])
    means = essence_by_layer(table, PLAN)
    assert list(means.columns) == list(ESSENCE_COLUMNS)
    assert means["essence"].tolist() == pytest.approx([0.4, 0.5, 1.0])
    assert means["n_facts"].tolist() == [2, 2, 1]
    assert means["perplexity_pre"].tolist() == [7.0, 7.0, 6.0]  # of the facts that were edited there
    assert means["perplexity_post"].tolist() == [10.0, np.inf, 5.0]
    assert means["low"].isna().tolist() == means["high"].isna().tolist() == [False, False, True]


def test_methods_and_problems_keep_their_order_and_failed_layers_their_row() -> None:
    rows = [(fact, problem, layer, 6.0, NAN) for problem in ("z", "b") for fact in "ab" for layer in (3, 1)]
    means = essence_by_layer(with_score(perplexities(*rows)), PLAN)
    assert means[["problem", "layer"]].to_numpy().tolist() == [["z", 1], ["z", 3], ["b", 1], ["b", 3]]
    assert means["n_facts"].tolist() == [0] * 4
    assert means["essence"].isna().all()


def test_beside_traces_it_is_a_score_like_others() -> None:
    run = make_run(8, 6)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    ids, layers = sorted(run.trace["fact_id"].unique()), range(6)
    # What is left falls with the layer alone, by half a point of perplexity each.
    rows = [(fact, "fact_erasure", layer, 6.0, 6.0 + 0.5 * layer) for fact in ids for layer in layers]
    table = with_score(perplexities(*rows))
    beside = beside_traces(scores, table)
    assert len(beside) == 48
    assert beside["essence"].tolist() == pytest.approx((1 - 0.1 * beside["layer"]).tolist())
    design = Design(keep_null_layers=True, folds=4, plan=PLAN)
    found = regression_table(beside, ["essence"], ["fraction"], design)[list(R2_COLUMNS)].iloc[0]
    assert (found["problem"], found["n_facts"], found["n_rows"]) == ("fact_erasure", 8, 48)
    assert found["r2_layer"] == pytest.approx(1)
    assert 0 <= found["r2_trace"] < 1


def test_tables_that_do_not_fit_together() -> None:
    run = make_run(3, 4)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    row = ("capital.000", "fact_erasure", 0, 6.0, 6.0)
    with pytest.raises(UserError, match=r"fact capital.000 \(rome, fact_erasure\) has two rows for layer 0"):
        beside_traces(scores, with_score(perplexities(row, row)))
    with pytest.raises(UserError, match="has none of the edits of data/essence"):
        beside_traces(scores, with_score(perplexities(("other", *row[1:]))))
