"""What the README says of a run is that run's numbers, without those that too few facts give."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from pipeline.report.compare import traced
from pipeline.report.finished import Finished, read_finished
from pipeline.report.readme_run import run_of, statistics_of
from tests.conftest import ROOT

PAPER = pd.read_csv(ROOT / "data" / "paper" / "hase2023_r2.csv")


@pytest.fixture(scope="module")
def run() -> Finished:
    return read_finished(ROOT / "reports" / "second-model")


def rows(text: str) -> list[list[str]]:
    """Cells of the lines of all tables, without their rulers."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [cells for cells in lines if set(cells) != {"---"}]


def test_the_numbers_of_a_problem_stand_in_its_row(run: Finished) -> None:
    found = {cells[0]: cells for cells in rows(run_of(run))}
    own = run.regressions.query("problem == 'fact_erasure' and score == 'rewrite'").iloc[0]
    chosen = run.choices.query("problem == 'fact_erasure' and score == 'rewrite'")
    costs = [chosen[chosen["choice"] == choice].iloc[0] for choice in ("fixed", "random")]
    assert found["fact erasure"] == [
        "fact erasure", f"{own['r2_layer']:.3f}", f"{own['r2_layer_all']:.3f}",
        f"{own['gain']:.3f}",  # 50 facts give it no interval that holds
        f"{own['cv_gain']:.3f} ({own['cv_gain_low']:.3f} to {own['cv_gain_high']:.3f})",
        f"{own['within_slope']:.3f} ({own['within_low']:.3f} to {own['within_high']:.3f})",
        *(
            f"{100 * cost['regret']:.1f} ({100 * cost['regret_low']:.1f} to {100 * cost['regret_high']:.1f})"
            for cost in costs
        ),
        f"{own['n_facts']} x {own['n_layers']}",
    ]  # fmt: skip
    assert len(found) == 1 + run.regressions["problem"].nunique()  # no second table for one method


def test_r2_at_the_paper_s_depths_stands_beside_the_paper_s() -> None:
    run = read_finished(ROOT / "reports" / "default-run")
    own = pd.read_csv(run.folder / "robustness.csv").query("variation == 'edited layers'").set_index("problem")
    found = rows(run_of(run, PAPER))
    assert found[0][9:] == ["at the paper's depths, null block kept", "GPT-J in the paper: layer, trace, both"]
    for cells in found[1:]:
        assert cells[9] == f"{own.loc[cells[0].replace(' ', '_'), 'r2_layer_all']:.3f}"
    assert "9 of 30 here, and on 10 facts, the layer explains" in run_of(run, PAPER)
    low, high = (f"{own['r2_layer'].agg(end):.3f}" for end in ("min", "max"))
    assert f"as in the paper's grid, and {low} to {high} without it" in run_of(run, PAPER)
    assert "depths" not in run_of(run)


@pytest.fixture(scope="module")
def larger(run: Finished) -> Finished:
    """The run as if of 120 facts, and by MEMIT too, whose choices are of 12 facts."""
    regressions = run.regressions.assign(n_facts=120)
    other = regressions.assign(method="memit", r2_layer=0.5)
    choices = pd.concat([run.choices, run.choices.assign(method="memit", regret=-0.25, n_facts=12)], ignore_index=True)
    return replace(run, regressions=pd.concat([regressions, other], ignore_index=True), choices=choices)


def test_more_facts_methods_and_a_paper_give_more_columns(run: Finished, larger: Finished) -> None:
    own = run.regressions.query("problem == 'error_injection' and score == 'rewrite'").iloc[0]
    ends = f"{own['gain']:.3f} ({own['gain_low']:.3f} to {own['gain_high']:.3f}; {max(own['gain_bound'], 0):.3f})"
    text = run_of(larger, PAPER)
    (first,) = [cells for cells in rows(text) if cells[0] == "error injection"]
    assert first[3] == ends
    assert first[9] == "0.947, 0.016, 0.948"
    (other,) = [cells for cells in rows(text) if cells[:2] == ["MEMIT", "error injection"]]
    assert other[2] == "0.500"
    assert other[4] == ends
    assert other[7] == "-25.0"  # of 12 facts: no interval
    known = PAPER.query("method == 'MEMIT' and problem == 'error_injection' and score == 'rewrite'").iloc[0]
    assert other[10] == f"{known['r2_layer']:.3f}, {known['r2_trace']:.3f}, {known['r2_both']:.3f}"
    assert "The same by MEMIT:" in text
    assert "in the paper" not in run_of(larger)


def test_what_the_paper_did_not_edit_by_has_a_dash(larger: Finished) -> None:
    kn = replace(larger, regressions=larger.regressions.replace({"method": {"memit": "kn"}}))
    assert [cells[10] for cells in rows(run_of(kn, PAPER)) if cells[0] == "KN"] == ["–"] * 3


def test_all_statistics_stand_in_one_table(larger: Finished) -> None:
    found = rows(statistics_of(larger))
    assert [cells[:2] for cells in found[1:]] == [
        [method, problem]
        for method in ("ROME", "MEMIT")
        for problem in ("error injection", "fact erasure", "fact amplification")
    ]
    own = larger.regressions.query("problem == 'fact_erasure' and score == 'rewrite' and method == 'rome'").iloc[0]
    told = dict(zip(found[0], next(cells for cells in found if cells[:2] == ["ROME", "fact erasure"]), strict=True))
    assert told["facts x layers"] == f"120 x {own['n_layers']}"
    for column, name in {"layer": "r2_layer", "trace": "r2_trace", "both": "r2_both", "chance": "chance"}.items():
        assert told[column] == f"{own[name]:.3f}"
    assert told["bound"] == f"{own['gain_bound']:.3f}"
    assert told["gain (95% interval)"] == f"{own['gain']:.3f} ({own['gain_low']:.3f} to {own['gain_high']:.3f})"
    assert found[0].index("p, Holm") == 10
    cells = next(cells for cells in found if cells[:2] == ["ROME", "fact erasure"])
    assert cells[10] == f"{own['permutation_holm']:.4f}"
    assert cells[13] == f"{own['within_holm']:.4f}"


def test_measures_that_name_other_layers_stand_side_by_side(run: Finished) -> None:
    assert "by measure of the trace" not in run_of(run)
    first = traced(run).assign(localizer="trace_mlp_w5_fraction")
    alike = first.assign(localizer="trace_mlp_w5_effect")
    other = first.assign(localizer="trace_mlp_w5_last_subject", regret=0.0123)
    text = run_of(replace(run, choices=pd.concat([first, alike, other], ignore_index=True)))
    found = rows(text.partition("by measure of the trace")[2])
    assert found[0] == ["problem", "trace_mlp_w5_fraction", "trace_mlp_w5_last_subject"]
    own = first.query("problem == 'fact_erasure' and score == 'rewrite'").set_index("choice")
    (cells,) = [cells for cells in found if cells[0] == "fact erasure"]
    told = [
        f"{100 * row['regret']:.1f} ({100 * row['regret_low']:.1f} to {100 * row['regret_high']:.1f})"
        for row in (own.loc["fixed"], own.loc["random"])
    ]
    assert cells[1] == " / ".join(told)
    assert cells[2].startswith("1.2 (")
