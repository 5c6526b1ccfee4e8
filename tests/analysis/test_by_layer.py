"""Tables by layer: means, peaks and correlations that were worked out by other means."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.by_layer import (
    SHOWN,
    by_layer_tables,
    correlation_table,
    correlations,
    scores_by_layer_table,
    trace_peaks_table,
)
from pipeline.analysis.collapse import with_harm
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.scores import score_table
from tests.analysis.synthetic import PROBLEMS, make_run

PLAN = Resampling(samples=50, permutations=50, confidence=0.95, seed=0)


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    run = make_run(6, 8)
    trace = pd.concat([run.trace, run.trace.assign(window=1, effect=run.trace["effect"] ** 2)])
    return with_harm(score_table(run.edits, run.facts, trace, 0.02), run.edits, 0.5)


def test_scores_by_layer_are_means_over_facts_once_each(scores: pd.DataFrame) -> None:
    table = scores_by_layer_table(scores, PLAN)
    assert len(table) == len(PROBLEMS) * len(SHOWN) * 8
    own = scores[(scores["problem"] == "fact_erasure") & (scores["trace_window"] == 1) & (scores["layer"] == 5)]
    row = table.query("problem == 'fact_erasure' and score == 'neighborhood' and layer == 5").iloc[0]
    assert row["mean"] == pytest.approx(own["neighborhood"].mean())
    assert row["n"] == 6
    assert row["low"] < row["mean"] < row["high"]
    failed = table.query("problem == 'error_injection' and layer == 3")
    assert failed["n"].tolist() == [5] * len(SHOWN)
    without = scores_by_layer_table(scores.assign(paraphrase=np.nan), PLAN)
    assert set(without["score"]) == set(SHOWN) - {"paraphrase"}


def test_peaks_are_counted_by_hand() -> None:
    def fact(name: str, rows: list[list[float]]) -> pd.DataFrame:
        made = [
            {"fact_id": name, "token_role": role, "layer": layer, "effect": value}
            for role, values in zip(("last_subject", "last_token"), rows, strict=True)
            for layer, value in enumerate(values)
        ]
        return pd.DataFrame(made).assign(module="mlp", window=5)

    trace = pd.concat(
        [
            fact("a", [[0.1, 0.3, 0.2], [0.0, 0.1, 0.4]]),  # 2 of any token, 1 at the last of the subject
            fact("b", [[0.5, 0.5, 0.2], [0.0, 0.0, 0.0]]),  # tied: the lowest
            fact("c", [[-0.1, -0.2, -0.3], [0.1, 0.2, 0.1]]),  # nothing comes back at the subject
        ]
    )
    table = trace_peaks_table(trace).set_index(["tokens", "layer"])
    assert table.loc["any", "facts"].tolist() == [1, 1, 1]
    assert table.loc["last_subject", "facts"].tolist() == [1, 1, 0]
    assert table.loc["any", "n"].tolist() == [3, 3, 3]
    assert table.loc["last_subject", "n"].tolist() == [2, 2, 2]
    assert table.loc["last_subject", "share"].tolist() == [0.5, 0.5, 0.0]


def test_correlations_are_numpys_and_nan_where_undefined(scores: pd.DataFrame) -> None:
    table = correlation_table(scores, ["rewrite", "overall"], ["fraction", "effect"], keep_null_layers=False)
    assert len(table) == len(PROBLEMS) * 2 * 2 * 2 * 8
    own = scores[(scores["problem"] == "fact_forcing") & (scores["trace_window"] == 1) & (scores["layer"] == 2)]
    of = "problem == 'fact_forcing' and trace_window == 1 and layer == 2"
    row = table.query(f"{of} and score == 'overall' and trace_measure == 'effect'").iloc[0]
    assert row["r"] == pytest.approx(np.corrcoef(own["overall"], own["effect"])[0, 1])
    nan = np.nan
    x = np.array([[1.0, 1.0, nan, 0.3], [2.0, 1.0, nan, 0.3 + 1e-17], [3.0, 1.0, 1.0, 0.3]])
    y = np.array([[2.0, 1.0, nan, 0.1], [4.0, 2.0, nan, 0.2], [6.0, 3.0, 1.0, 0.3]])
    r, n = correlations(x, y)
    assert r[0] == pytest.approx(1)
    assert np.isnan(r[1:]).all()
    assert n.tolist() == [3, 3, 1, 3]


def test_null_layers_have_no_correlation_unless_they_are_kept(scores: pd.DataFrame) -> None:
    null = scores.assign(acts=scores["layer"] != 7)
    layers = [
        set(correlation_table(null, ["rewrite"], ["effect"], keep_null_layers=keep)["layer"]) for keep in (False, True)
    ]
    assert layers == [set(range(7)), set(range(8))]


def test_all_tables_have_the_names_of_their_files(scores: pd.DataFrame) -> None:
    run = make_run(3, 4)
    own = with_harm(score_table(run.edits, run.facts, run.trace, 0.02), run.edits, 0.5)
    tables = by_layer_tables(own, run.trace, ["rewrite"], ["fraction"], PLAN, keep_null_layers=False)
    assert list(tables) == [
        "rewrite_by_layer", "trace_by_layer", "scores_by_layer", "trace_peaks", "correlation_by_layer"
    ]  # fmt: skip
    assert all(len(table) for table in tables.values())
