"""What is written down of a stage: the run that computed its numbers, and not one that found all of them done."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.closure import code_version
from pipeline.compute.keys import common
from pipeline.edit.methods import load
from pipeline.watch import Work
from stages._run import TIMINGS, run_stage
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Work, "asked", 0)
    monkeypatch.setattr(Work, "found", 0)
    monkeypatch.setattr(Work, "code", {})
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the test's own process goes on
    shutil.copy(ROOT / "presets" / "smoke.yaml", "params.yaml")


def written(units: int, found: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The record after a stage that was asked for so many units and found so many of them."""
    monkeypatch.setattr(Work, "asked", 0)
    monkeypatch.setattr(Work, "found", 0)
    with pytest.raises(SystemExit) as ended:
        run_stage("trace", lambda _: Work.count(units, found))
    assert ended.value.code == 0
    record: dict[str, object] = json.loads((TIMINGS / "trace.json").read_text("utf-8"))
    return record


@pytest.mark.parametrize(("units", "found", "anew"), [(3, 3, False), (3, 2, True), (0, 0, True)])
def test_only_a_stage_that_computed_writes_its_seconds(
    units: int, found: int, anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    TIMINGS.mkdir(parents=True)
    (TIMINGS / "trace.json").write_text('{"seconds": 1234.5}')
    record = written(units, found, monkeypatch)
    assert (record["seconds"] != 1234.5) == anew


def test_it_is_written_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(3, 3, monkeypatch)["stage"] == "trace"


def test_the_code_that_computed_a_stage_s_numbers_is_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(0, 0, monkeypatch)["code"] == {"stages.trace": code_version("stages.trace")}  # it has no units
    params = load("params.yaml")
    model = {"fingerprint": "0", "fast_path": True}
    common(params, model, "pipeline.compute.trace_job")
    common(params, model, "pipeline.compute.edit_job", "pipeline.edit.rome")
    assert written(2, 0, monkeypatch)["code"] == {
        "pipeline.compute.trace_job": code_version("pipeline.compute.trace_job"),
        "pipeline.compute.edit_job pipeline.edit.rome": code_version("pipeline.compute.edit_job", "pipeline.edit.rome"),
    }
