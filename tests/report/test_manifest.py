"""The manifest's timings: of the stages that params ask for, whatever earlier runs left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.report.manifest import lasting, manifest, read_timings
from pipeline.tables import write_json


def made(folder: Path, *problems: str, methods: tuple[str, ...] = ("rome",)) -> dict[str, Any]:
    params = {"edit": {"methods": methods, "problems": problems}}
    return manifest({}, {}, params, read_timings(folder))


def test_stages_beside_the_main_path_stand_by_themselves(tmp_path: Path) -> None:
    code = {"pipeline.compute.table_job": "0123456789abcdef"}
    for stage in ("trace", "table", "maps"):
        write_json(
            {"stage": stage, "seconds": 2.0, "code": code, "versions": {"torch": "2.0"}}, tmp_path / f"{stage}.json"
        )
    params = {"edit": {"methods": (), "problems": ()}}
    told = manifest({}, {}, params, read_timings(tmp_path), ["table", "essence"])
    assert told["stages"] == {"trace": {"seconds": 2.0, "code": code}}
    assert told["measures"] == {"table": {"seconds": 2.0, "code": code}}
    assert set(lasting(told)) == {"model", "statistics", "params", "versions"}


def test_timings_of_problems_that_params_no_longer_hold_are_left_out(tmp_path: Path) -> None:
    old = {"edit-rome-fact_erasure": "1.0", "edit-gone-fact_forcing": "1.0", "a-stage-of-before": "0.5"}
    now = {"model": "2.0", "trace": "2.0", "edit-rome-fact_forcing": "2.0"}
    for stage, version in (old | now).items():
        record = {"stage": stage, "seconds": 1.5, "peak_gb": 0.5, "versions": {"torch": version}}
        write_json(record, tmp_path / f"{stage}.json")
    told = made(tmp_path, "fact_forcing")
    assert told["stages"] == {stage: {"seconds": 1.5, "peak_gb": 0.5} for stage in sorted(now)}
    assert told["versions"] == {"torch": "2.0"}  # nor do their versions stand there
    both = made(tmp_path, "fact_forcing", "fact_erasure")
    assert set(both["stages"]) == {*now, "edit-rome-fact_erasure"}
    assert both["versions"] == {"torch": "1.0 (edit-rome-fact_erasure), 2.0 (edit-rome-fact_forcing, model, trace)"}
