"""Runs that are stopped at any moment, and runs that share a store: nothing finished is lost, nothing stays behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.stages.clones import Clone, differing

REPRO = ("make", "-o", ".venv/.ready", "repro")  # with the packages that run these tests
STOPS = 20
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SOONEST, LATEST = 0.5, 10.0  # seconds after the start of `dvc repro`: from its first imports to its later stages
ENDS_WITHIN = 60.0  # seconds that a stopped run may take to be gone


def units(clone: Clone) -> dict[str, int]:
    """Every stored unit's file with the time at which it was written."""
    store = clone.root / "data" / "store"
    return {str(path.relative_to(store)): path.stat().st_mtime_ns for path in store.glob("*/[!.]*")}


def temporary_files(clone: Clone) -> list[Path]:
    folders = [clone.root / "data", clone.root / "reports"]
    return [
        path for folder in folders for path in folder.rglob("*")
        if path.name.startswith(".") and path.name not in (".gitignore", ".in-use")
    ]  # fmt: skip


def forget(clone: Clone) -> None:
    """Take the clone back to where nothing but its model is there."""
    shutil.rmtree(clone.root / ".dvc" / "cache", ignore_errors=True)
    (clone.root / "dvc.lock").unlink(missing_ok=True)
    for name in ("store", "statistics", "edits", "timings"):
        shutil.rmtree(clone.root / "data" / name, ignore_errors=True)
    for path in [*(clone.root / "data").glob("*.parquet"), *(clone.root / "data").glob("*.json")]:
        path.unlink()
    for path in (clone.root / "reports").glob("*.*"):
        path.unlink()


def session(leader: int) -> list[psutil.Process]:
    """Living processes of the session that process `leader` began."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


@pytest.mark.slow
def test_stopped_at_twenty_random_moments_it_ends_with_the_same_bytes(clone: Clone, tmp_path: Path) -> None:
    """SIGINT, SIGTERM and SIGKILL to all of `make repro`, as a terminal, a scheduler and a lack of memory send them.

    A unit that was stored before a stop is never computed again, so that a stop costs at most the one unit that each
    worker had begun.
    """
    before = clone.results()
    clone.change("compute", workers=2)
    forget(clone)
    chance, seen, stops = random.Random(2026), dict[str, int](), 0
    while stops < STOPS:
        with (tmp_path / "told").open("w", encoding="utf-8") as told, subprocess.Popen(
            REPRO, cwd=clone.root, env=clone.environment, start_new_session=True, stdout=told, stderr=told,
        ) as process:  # fmt: skip
            try:
                status = process.wait(chance.uniform(SOONEST, LATEST))
            except subprocess.TimeoutExpired:
                number = SIGNALS[stops % len(SIGNALS)]
                stops += 1
                os.killpg(process.pid, number)
                deadline = time.monotonic() + ENDS_WITHIN
                while session(process.pid):
                    assert time.monotonic() < deadline, (number, [p.cmdline() for p in session(process.pid)])
                    time.sleep(0.05)
            else:
                assert status == 0, (tmp_path / "told").read_text("utf-8")
                assert differing(clone.results(), before) == []
                forget(clone)  # it came to its end before the last stop: once more, from the beginning
                seen = {}
        now = units(clone)
        assert {name: now.get(name) for name in seen} == seen
        seen = now
    clone.command(*REPRO)
    now = units(clone)
    assert {name: now.get(name) for name in seen} == seen
    assert len({name.split(".")[0] for name in now}) == len(now)  # no unit twice
    assert differing(clone.results(), before) == []
    assert temporary_files(clone) == []


@pytest.mark.slow
def test_two_runs_at_once_on_one_store_both_end_right(clone: Clone) -> None:
    step, words = "edit-rome-fact_erasure", ["-m", "stages.edit", "--method", "rome", "--problem", "fact_erasure"]
    before = clone.results()
    count = len(clone.units(step))
    shutil.rmtree(clone.root / "data" / "store" / step)
    running = [
        subprocess.Popen(
            ["python", *words], cwd=clone.root, env=clone.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in running:
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told
    assert len(clone.units(step)) == count
    assert differing(clone.results(), before) == []
    assert temporary_files(clone) == []
