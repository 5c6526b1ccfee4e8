"""What the page says of other settings, and draws: beside each count, what it would be with nothing to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.robustness import COUNT_COLUMNS, ROBUSTNESS_COLUMNS
from pipeline.errors import UserError
from pipeline.report.extras import EXTRAS
from pipeline.report.robustness import section
from pipeline.report.section import Section
from pipeline.tables import write_csv

VARIED = [
    ("run", ""), ("module", "attn"), ("window", "10"), ("edited layers", "9 of 29"),
    ("corruption and metric", "zero, log_probability"),
    ("corruption and metric", "replace, probability"), ("measure", "effect"), ("known facts", "p >= 0.1"),
    ("concentrated traces", "top 50%"), ("successful edits", "best >= 0.9"),
]  # fmt: skip


def drawn(folder: Path, n_facts: int = 120, holm: dict[tuple[str, str], float] | None = None, **count: Any) -> Section:
    """The section on made-up tables of two methods and problems; holm: p-values of rows, 1 for the others."""
    rows = []
    for method, width in (("ft_1", 1), ("ft_5", 5)):
        for problem in ("error_injection", "fact_erasure"):
            for place, (variation, value) in enumerate(VARIED):
                row = dict.fromkeys(ROBUSTNESS_COLUMNS, 0.01 * place) | {
                    "method": method, "problem": problem, "score": "rewrite", "edit_window": width,
                    "variation": variation, "value": value, "n_facts": n_facts,
                    "n_left_out": 2 if value.startswith("replace") else 0,
                    "n_relations": 2, "gain_low": -0.02, "gain_high": 0.3, "gain_bound": 0.2, "dealt_low": -0.03,
                    "dealt_high": 0.04, "permutation_pvalue": 0.5, "regret": 0.05 - 0.01 * place, "regret_low": -0.1,
                    "regret_high": 0.1, "permutation_holm": (holm or {}).get((variation, value), 1.0),
                }  # fmt: skip
                rows.append(row)
    table = pd.DataFrame(rows)[list(ROBUSTNESS_COLUMNS)]
    if n_facts < 10:
        table["permutation_holm"] = np.nan
    told = {
        "confidence": 0.95, "rows": 40, "tests": 40, "rejected": 3, "expected": 2.0, "rejected_holm": 0,
        "joint_tests": 24, "joint_rejected": 2, "joint_expected": 1.1, "joint_high": 5.0, "joint_pvalue": 0.21,
    }  # fmt: skip
    write_csv(table, folder / "robustness.csv")
    write_csv(pd.DataFrame([told | count])[list(COUNT_COLUMNS)], folder / "robustness_count.csv")
    return section(folder, folder, 0.95)


def test_nothing_is_found_and_how_much_would_be_by_chance_stands_beside_it(tmp_path: Path) -> None:
    found = drawn(tmp_path)
    assert found.paragraphs[0] == (
        "No, as far as these facts can tell: of 40 tests, one for each row of the table that is of enough facts, 3 "
        "find at p ≤ 0.05 that the trace adds to what the layer explains. Were there nothing to find, about 2.0 would, "
        "or fewer; after Holm's correction none is left. Rows share edits and traces, and so reject together: where "
        "the traces of a fact, in all variations, are dealt to another fact of its relation, up to 5 of 24 such rows "
        "reject in 95% of dealings; here 2 do (p = 0.2100)."
    )
    assert "a gain has to be above 0.040" in found.paragraphs[1]
    assert "the largest that any row still allows is 0.200" in found.paragraphs[1]
    assert "loses -4.0 to 5.0 points of rewrite score (median 0.5); it gains in 16 of 40 rows" in found.paragraphs[2]
    assert "in 0 of 40; where the two were alike, about 1.0 would" in found.paragraphs[2]
    assert found.paragraphs[3].startswith("For 2 facts no other known subject")
    assert "FT-1 changes 1 block and FT-5 changes 5 blocks" in found.points[0]


def test_what_changes_is_named(tmp_path: Path) -> None:
    found = drawn(tmp_path, holm={("window", "10"): 0.01}, rejected_holm=4)
    assert found.paragraphs[0].startswith("Yes, in 4 rows: of 40 tests")
    assert "for window 10 (error injection, FT-1), window 10 (fact erasure, FT-1)," in found.paragraphs[0]
    same = drawn(tmp_path, holm=dict.fromkeys(VARIED, 0.001), rejected_holm=40)
    assert same.paragraphs[0].startswith("No: of 40 tests")
    assert "40 are left, the run's own among them." in same.paragraphs[0]
    lost = drawn(tmp_path, holm=dict.fromkeys(VARIED[:-1], 0.001), rejected_holm=36)
    assert lost.paragraphs[0].startswith("Yes, in 4 rows")
    assert "for successful edits, best ≥ 0.9 (" in lost.paragraphs[0]


def test_with_few_facts_nothing_is_tested_and_no_interval_given(tmp_path: Path) -> None:
    few = drawn(tmp_path, n_facts=5, tests=0, joint_tests=np.nan)
    assert few.paragraphs[0].startswith("Not known: no row is of 10 facts or more")
    assert "Below 40 facts no interval of it is given" in few.paragraphs[2]
    assert "no interval of the gain is drawn" in few.plots[0].caption
    row = few.tables[0].rows[1]
    assert row[:4] == ["error injection", "FT-1", "restored: attn", "5"]
    assert row[8] == "– (–)"
    assert row[6] == "0.010"
    assert drawn(tmp_path).tables[0].rows[1][6] == "0.010 (-0.020 to 0.300)"


def test_the_forest_has_a_mark_for_each_row_and_an_interval_where_there_are_facts(tmp_path: Path) -> None:
    for n_facts, intervals in ((120, True), (20, False)):
        (plot,) = drawn(tmp_path, n_facts).plots
        axes = [ax for ax in plot.figure.axes if ax.get_visible()]
        assert [ax.get_title() for ax in axes] == ["error injection", "fact erasure"]
        ends = [np.asarray(line.get_xdata(), dtype=float).tolist() for line in axes[0].lines]
        assert sorted(at[0] for at in ends if len(at) == 1) == pytest.approx(sorted(2 * [i / 100 for i in range(10)]))
        assert ([-0.02, 0.3] in ends) == intervals
        assert len(axes[0].patches) == 20
        labels = [text.get_text() for text in axes[0].get_yticklabels()]
        assert labels[:5] == [
            "as in the run",
            "restored: attn",
            "window 10",
            "layers: 9 of 29",
            "zero, log probability",
        ]
        assert plot.save(tmp_path, 50)[1].stat().st_size > 2000


def test_the_table_s_head_fits_and_a_file_of_another_version_is_told(tmp_path: Path) -> None:
    (table,) = drawn(tmp_path).tables
    assert sum(columns for _, columns in table.groups) == len(table.head) == len(table.rows[0])
    assert [extra.draw for extra in EXTRAS if extra.name == "robustness"] == [section]
    (tmp_path / "robustness.csv").write_text("method\nrome\n")
    with pytest.raises(UserError, match=r"robustness\.csv: has no column problem; delete it and run make robustness"):
        section(tmp_path, tmp_path, 0.95)
