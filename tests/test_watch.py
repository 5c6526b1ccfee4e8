"""A stage on the machine: what a killed one left is removed, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pipeline.watch import tidy


def test_what_a_dead_process_had_begun_to_write_goes_and_nothing_else(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    data = tmp_path / "data"
    (data / "store").mkdir(parents=True)
    (data / f".statistics.{ended.pid}").mkdir()
    (data / f".statistics.{ended.pid}" / "moments").write_text("half")
    (data / "edits").mkdir()
    gone = data / "edits" / f".rome.parquet.{ended.pid}"
    kept = [
        data / "edits" / f".rome.parquet.{os.getpid()}",  # another stage's, which is at work
        data / "edits" / "rome.parquet",
        data / f"table.{ended.pid}",  # not hidden: not ours
        data / ".in-use",
        data / "store" / f".unit.{ended.pid}",  # the store looks after its own
    ]
    for path in (gone, *kept):
        path.write_text("half")
    tidy(data, tmp_path / "not-there", leave=data / "store")
    assert sorted(path for path in data.rglob("*") if path.is_file()) == sorted(kept)
    assert not (data / f".statistics.{ended.pid}").exists()


BURN = "import time\nwhile time.process_time() < 2.5: pass"
SCRIPT = f"""
import os, subprocess, sys
from pipeline.watch import Peak
with Peak() as peak:
    subprocess.run([sys.executable, "-c", {BURN!r}], check=True)
print(sum(os.times()[:2]), peak.cpu_seconds, peak.gb)
"""


def test_cpu_seconds_are_those_of_the_process_and_its_children() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout
    own, seconds, gb = map(float, told.split())
    assert own + 1.0 < seconds < own + 2.8  # a process that ends is last seen up to a second before
    assert gb > 0.01
