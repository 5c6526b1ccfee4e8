"""What the README says of a run is that run's numbers, without those that too few facts give."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from pipeline.report.finished import Finished, read_finished
from pipeline.report.readme_run import run_of
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
    cost = run.choices.query("problem == 'fact_erasure' and score == 'rewrite' and choice == 'fixed'").iloc[0]
    assert found["fact erasure"] == [
        "fact erasure", f"{own['r2_layer']:.3f}", f"{own['r2_layer_all']:.3f}",
        f"{own['gain']:.3f}",  # 50 facts give it no interval that holds
        f"{own['cv_gain']:.3f} ({own['cv_gain_low']:.3f} to {own['cv_gain_high']:.3f})",
        f"{own['within_slope']:.3f} ({own['within_low']:.3f} to {own['within_high']:.3f})",
        f"{100 * cost['regret']:.1f} ({100 * cost['regret_low']:.1f} to {100 * cost['regret_high']:.1f})",
        f"{own['n_facts']} x {own['n_layers']}",
    ]  # fmt: skip
    assert len(found) == 1 + run.regressions["problem"].nunique()  # no second table for one method


def test_r2_at_the_paper_s_depths_stands_beside_the_paper_s() -> None:
    run = read_finished(ROOT / "reports" / "default-run")
    own = pd.read_csv(run.folder / "robustness.csv").query("variation == 'edited layers'").set_index("problem")
    found = rows(run_of(run, PAPER))
    assert found[0][8:] == ["at the paper's depths, null block kept", "GPT-J in the paper: layer, trace, both"]
    for cells in found[1:]:
        assert cells[8] == f"{own.loc[cells[0].replace(' ', '_'), 'r2_layer_all']:.3f}"
    low, high = (f"{own['r2_layer'].agg(end):.3f}" for end in ("min", "max"))
    assert f"as in the paper's grid, and {low} to {high} without it" in run_of(run, PAPER)
    assert "depths" not in run_of(run)


def test_more_facts_methods_and_a_paper_give_more_columns(run: Finished) -> None:
    regressions = run.regressions.assign(n_facts=120)
    other = regressions.assign(method="memit", r2_layer=0.5)
    choices = pd.concat([run.choices, run.choices.assign(method="memit", regret=-0.25, n_facts=12)], ignore_index=True)
    larger = replace(run, regressions=pd.concat([regressions, other], ignore_index=True), choices=choices)
    first, costs = run_of(larger, PAPER), []
    for cells in rows(first):
        if cells[0] == "error injection" and len(cells) == 9:
            own = regressions.query("problem == 'error_injection' and score == 'rewrite'").iloc[0]
            ends = f"({own['gain_low']:.3f} to {own['gain_high']:.3f}; {max(own['gain_bound'], 0):.3f})"
            assert cells[3] == f"{own['gain']:.3f} {ends}"
            assert cells[8] == "0.947, 0.016, 0.948"
        elif cells[0] == "error injection":
            costs.append(cells[1:])
    assert len(costs) == 1
    assert costs[0][1] == "-25.0"  # of 12 facts: no interval
    assert "in the paper" in first
