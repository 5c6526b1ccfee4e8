"""The committed runs are of today's code: no figure in the README is older than what computed it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.closure import code_version
from tests.conftest import ROOT

RUNS = sorted(path.parent.name for path in (ROOT / "reports").glob("*/manifest.json"))


def manifest(run: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "reports" / run / "manifest.json").read_text("utf-8")))


def stages(run: str) -> dict[str, dict[str, Any]]:
    """Stage to what a run's manifest says of it, those of measures/dvc.yaml too."""
    return {**manifest(run)["stages"], **manifest(run).get("measures", {})}


@pytest.mark.parametrize("run", RUNS)
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
