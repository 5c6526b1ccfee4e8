"""Both directions: means at layers chosen on other facts, worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.comparison import comparison_table
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.reverse import REVERSE_COLUMNS, reverse_table
from pipeline.report.reverse import sections

PLAN = Resampling(samples=200, permutations=99, confidence=0.95, seed=0)


def tables(with_reverse: tuple[str, ...] = ("a", "b")) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and edits of three facts at two layers, of which layer 1 is the better for all."""
    scores, edits = [], []
    for place, fact_id in enumerate("abc"):
        for layer in (0, 1):
            names = {"fact_id": fact_id, "problem": "error_injection", "method": "rome", "window": 1, "layer": layer}
            scored = {
                "rewrite": 0.5 + 0.1 * place,
                "paraphrase": 0.5,
                "neighborhood": 0.5,
                "overall": 0.4 + 0.1 * layer,
            }
            back = {"reverse": 0.1 * place if fact_id in with_reverse else np.nan, "collapsed": False}
            scores.append(names | scored | back)
            p = {"p_pre": 0.01 * (1 + place), "p_post": 0.2 * layer, "p_baseline_pre": 0.5, "p_baseline_post": 0.25}
            edits.append(names | p | {"prompt_kind": "rewrite", "p_post": 0.9})
            if fact_id in with_reverse:
                edits.append(names | p | {"prompt_kind": "reverse"})
    return pd.DataFrame(scores), pd.DataFrame(edits)


def test_means_by_hand() -> None:
    scores, edits = tables()
    table = reverse_table(scores, edits, comparison_table(scores, PLAN))
    assert tuple(table.columns) == REVERSE_COLUMNS
    row = table.iloc[0]
    assert (row["method"], row["problem"], row["n_facts"]) == ("rome", "error_injection", 2)
    assert (row["p_pre"], row["p_post"]) == (pytest.approx(0.015), pytest.approx(0.2))  # at layer 1
    assert (row["p_baseline_pre"], row["p_baseline_post"]) == (0.5, 0.25)
    assert row["reverse"] == pytest.approx(0.05)
    assert row["rewrite"] == pytest.approx(0.55)  # of the facts with a reverse prompt alone


def test_the_section_says_the_numbers_and_is_left_out_without_any() -> None:
    scores, edits = tables()
    (section,) = sections(reverse_table(scores, edits, comparison_table(scores, PLAN)))
    assert "over 2 facts" in section.paragraphs[0]
    assert "is 0.0150 before and 0.2000 after the edit: a reverse score of 0.050" in section.paragraphs[0]
    (row,) = section.tables[0].rows
    assert list(row[:6]) == ["error injection, ROME", "2", "0.0150", "0.2000", "0.5000", "0.2500"]
    assert row[6] == "0.050"  # no interval of two facts
    assert sum(columns for _, columns in section.tables[0].groups) == len(section.tables[0].head) == len(row)
    small = edits.assign(p_pre=edits["p_pre"] * 1e-6)
    (section,) = sections(reverse_table(scores, small, comparison_table(scores, PLAN)))
    assert section.tables[0].rows[0][2] == "1.5e-08"
    scores, edits = tables(())
    assert sections(reverse_table(scores, edits, comparison_table(scores, PLAN))) == []
