"""The engine of one machine when workers die: what is tried again, with how much memory, what is left out and named."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch

from pipeline.compute import engine
from pipeline.compute.store import Store
from pipeline.compute.work import Job
from pipeline.errors import UserError
from pipeline.lm.memory import budget, share_of
from tests.compute.marks import Marks, settings

KILLED = "was ended by the system (SIGKILL, exit 137), as it is where memory runs out,"


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a Marks in the working folder, where the store is too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marks").mkdir()
    return partial(Marks, tmp_path / "marks", params=settings(engine="local"))


def run(job: Job, workers: int = 2) -> pa.Table:
    return engine.run(job, Store("store"), (workers, 1))


def stored() -> int:
    return len([path for path in Path("store").rglob("*") if path.is_file()])


def test_a_unit_that_ran_out_of_memory_is_tried_once_more_at_half(
    marks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job = marks({2: "dies once"})
    table = run(job)
    assert table["unit"].to_pylist() == list(range(6))
    assert [len(by) for by in job.all()] == [1, 1, 2, 1, 1, 1]
    shares = table["share"].to_pylist()
    assert shares[2] == 0.5
    assert shares[:2] == [1.0, 1.0]
    told = capsys.readouterr().err
    assert (
        f"a worker of marks {KILLED} at unit 2; it is tried once more, with half the memory for its batches\n" in told
    )
    assert "marks: 6/6 units" in told
    assert [pid for by in job.all() for pid in by if psutil.pid_exists(pid) and alive(pid)] == []


def alive(pid: int) -> bool:
    """Whether a worker goes on; one that was told to end may need a moment."""
    return psutil.wait_procs([psutil.Process(pid)], timeout=30)[1] != []


def test_a_unit_that_runs_out_each_time_is_left_out_and_named(marks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job = marks({0: "dies", 3: "dies"})
    with pytest.raises(UserError) as told:
        run(job)
    assert str(told.value) in [
        f"2 of the units of marks cost every worker that tried: {named} (the last worker {KILLED}); what was "
        "finished is kept and the next run tries these again; if memory ran out, lower compute.memory or "
        "compute.workers in params.yaml"
        for named in ("unit 0, unit 3", "unit 3, unit 0")  # whichever's second worker was gone first
    ]
    assert [len(by) for by in job.all()] == [2, 1, 1, 2, 1, 1]
    assert stored() == 4  # and nothing in the place of the two
    assert f"a worker of marks {KILLED} at unit 0 again; the others go on without it\n" in capsys.readouterr().err
    again = run(dataclasses.replace(job, what={}))
    assert again["unit"].to_pylist() == list(range(6))
    assert [len(by) for by in job.all()] == [3, 1, 1, 3, 1, 1]


def test_the_last_unit_left_ends_no_stage_either(marks: Any) -> None:
    with pytest.raises(UserError, match=r"^1 of the units of marks .*: unit 0 \(the last worker .*exit 137"):
        run(marks({0: "dies"}, count=1))


def test_where_every_unit_costs_its_workers_not_all_are_tried(marks: Any) -> None:
    job = marks(dict.fromkeys(range(20), "dies"), count=20)
    with pytest.raises(UserError, match=r"^3 of the units of marks cost every worker"):
        run(job)
    assert sum(len(by) for by in job.all()) <= 8


def test_a_model_that_does_not_fit_is_told(marks: Any) -> None:
    with pytest.raises(UserError, match=r"^3 workers of marks died .* loaded the model; .*exit 137.* compute\.workers"):
        run(marks({-1: "dies"}))
    assert stored() == 0


def test_a_crash_is_no_lack_of_memory(marks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    table = run(marks({1: "crashes once"}))
    assert set(table["share"].to_pylist()) == {1.0}
    assert "a worker of marks was ended by SIGSEGV (exit 139) at unit 1; it is tried again\n" in capsys.readouterr().err


def test_an_error_of_a_worker_is_the_stage_s(marks: Any) -> None:
    with pytest.raises(UserError, match=r"^unit 3 is wrong and should be right$"):
        run(marks({3: "refuses"}))
    with pytest.raises(ZeroDivisionError, match="at unit 7") as error:  # none that the other worker may have finished
        run(marks({7: "is wrong"}, count=8))
    assert "marks.py" in error.value.__notes__[0]  # where in the worker


def test_one_worker_is_this_process(marks: Any) -> None:
    job = marks({})
    run(job, workers=1)
    assert {pid for by in job.all() for pid in by} == {os.getpid()}


def test_budgets_are_shares_while_that_is_asked_for() -> None:
    cpu = torch.device("cpu")
    with share_of(0.5):
        assert budget(1000, cpu, gradient=True) == 500
        assert budget(1, cpu, gradient=True) == 1
        free = budget(None, cpu, gradient=False)
    assert budget(1000, cpu, gradient=True) == 1000
    assert 1.5 * free < budget(None, cpu, gradient=False) < 2.5 * free
