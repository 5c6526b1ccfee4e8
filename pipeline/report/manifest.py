"""The run's manifest: what its tables were made of, with what versions, on what machine, in how many seconds."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.tables import read_record

STAGES = ("model", "facts", "trace", "localize", "statistics", "scores", "regressions")


def manifest(
    model: Mapping[str, Any],
    statistics: Mapping[str, Any],
    params: Mapping[str, Any],
    timings: Iterable[Mapping[str, Any]],
    beside: Iterable[str] = (),
) -> dict[str, Any]:
    """Model, statistics, params (with the seed), library versions, machine, and of each stage its seconds, its memory
    and the hash of the code that computed it (`code`: modules to what their import closure does).

    beside: stages of measures/dvc.yaml whose tables are of this run; they stand by themselves, under `measures`.

    The versions are those with which the stages computed their tables, not those of whoever draws the report; where
    stages differ, the text says which had which. Stages that params do not ask for are left out.
    """
    wanted = {*STAGES, *(f"edit-{m}-{p}" for m in params["edit"]["methods"] for p in params["edit"]["problems"])}
    every = {str(timing["stage"]): timing for timing in sorted(timings, key=lambda timing: str(timing["stage"]))}
    stages = {name: timing for name, timing in every.items() if name in wanted}
    return {
        "model": dict(model),
        "statistics": dict(statistics),
        "params": dict(params),
        "versions": versions({name: timing["versions"] for name, timing in stages.items()}),
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()},
        "stages": {name: _used(timing) for name, timing in stages.items()},
        "measures": {name: _used(every[name]) for name in sorted(beside) if name in every},
    }


def _used(timing: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in timing.items() if key not in ("stage", "versions")}


def lasting(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a manifest that another run of the same settings has too: without the machine and what it took."""
    return {name: value for name, value in manifest.items() if name not in ("machine", "stages", "measures")}


def versions(of_stages: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Library to its version; where stages differ, to "1.2 (facts, trace), 1.3 (scores)"."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage, libraries in of_stages.items():
        for library, version in libraries.items():
            found.setdefault(library, {}).setdefault(version, []).append(stage)
    return {
        library: next(iter(by_version))
        if len(by_version) == 1
        else ", ".join(f"{version} ({', '.join(stages)})" for version, stages in by_version.items())
        for library, by_version in found.items()
    }


def read_timings(folder: Path) -> list[dict[str, Any]]:
    """What stages left in `folder` of their last run, one JSON file a stage; empty where there are none."""
    return [read_record(path, stage=str, versions=dict) for path in sorted(folder.glob("*.json"))]
