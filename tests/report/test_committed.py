"""The committed runs are of today's code: no figure in the README is older than what computed it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.closure import code_version
from tests.conftest import ROOT

RUNS = sorted(path.parent.name for path in (ROOT / "reports").glob("*/manifest.json"))
EARLIER = {"reference"}  # runs of an earlier version, which the README says they are


def manifest(run: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "reports" / run / "manifest.json").read_text("utf-8")))


def stages(run: str) -> dict[str, dict[str, Any]]:
    """Stage to what a run's manifest says of it, those of measures/dvc.yaml too."""
    return {**manifest(run)["stages"], **manifest(run).get("measures", {})}


@pytest.mark.parametrize("run", [run for run in RUNS if run not in EARLIER])
def test_a_run_is_of_today_s_code(run: str) -> None:
    computed = stages(run)
    assert {"facts", "trace", "regressions"} < set(computed)
    stale = {
        f"{stage}: {modules}"
        for stage, record in computed.items()
        for modules, version in record["code"].items()
        if version != code_version(*modules.split())
    }
    assert stale == set(), f"compute reports/{run} anew (CONTRIBUTING.md says how)"
    assert [stage for stage, record in computed.items() if not record["code"] and stage != "model"] == []


@pytest.mark.parametrize("run", sorted(EARLIER & set(RUNS)))
def test_a_run_of_earlier_code_is_called_one(run: str) -> None:
    told = next(line for line in (ROOT / "README.md").read_text("utf-8").splitlines() if f"reports/{run}/" in line)
    assert "computed by an earlier version" in told
    assert not any("code" in record for record in stages(run).values()), f"{run} knows its code; take it out of EARLIER"
