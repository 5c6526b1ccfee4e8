"""Running units of work: what is in the store is taken from there, the rest is computed and stored one by one.

A job (pipeline.jobs) lists its units and makes a worker; only when a unit is missing is a worker made, and so a
model loaded. A unit's result depends on the unit alone, never on which others are computed beside it or by whom, so
the assembled table has the same bytes however often the run was interrupted, and on however many workers.

Several workers are several processes with a model each. On a CPU that is faster than one process with several
threads: the products of one edit are small, and threads wait for each other at every one of them. They are here or,
by pipeline.ray_engine, on a cluster.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch

from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.progress import Progress, say, track
from pipeline.store import Store


@dataclass(frozen=True)
class Unit:
    """One unit of work. key: hash of all that its result depends on. label: for people. item: what the worker needs."""

    key: str
    label: str
    item: Any


class Job(Protocol):
    """A list of units and the worker that computes one; both can be sent to another process."""

    @property
    def params(self) -> Params: ...

    @property
    def step(self) -> str: ...

    @property
    def noun(self) -> str: ...

    def units(self) -> Sequence[Unit]: ...

    def worker(self) -> Callable[[Unit], pa.Table]: ...


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(job: Job, store: Store, crew: tuple[int, int]) -> pa.Table:
    """The tables of all units of `job`, one after the other in the units' order.

    crew: how many workers on this machine, and the CPU threads of each; a cluster has a number of its own.
    """
    workers, threads = crew
    units = job.units()
    missing = [unit for unit in units if store.get_table(job.step, unit.key, unit.label) is None]
    if missing and job.params.compute.engine == "ray":
        from pipeline import ray_engine  # only here: Ray is an extra

        with track(len(missing), job.step, job.noun) as progress:
            ray_engine.run(job, store, missing, threads, progress)
    elif missing:
        with track(len(missing), job.step, job.noun) as progress:
            if min(workers, len(missing)) == 1:
                compute = job.worker()
                for unit in missing:
                    store.put_table(job.step, unit.key, compute(unit), unit.label)
                    progress.advance()
            else:
                _run_in_processes(job, store.root, missing, workers, progress)
    tables = []
    for unit in units:
        table = store.get_table(job.step, unit.key, unit.label)
        if table is None:
            raise UserError(f"{unit.label} of {job.step} was lost from {store.root} during the run; run again")
        tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables)


def _run_in_processes(job: Job, root: Path, units: Sequence[Unit], workers: int, progress: Progress) -> None:
    """Compute `units` in `workers` processes; a worker that dies costs the units in flight, which are tried again."""
    left = {unit.key: unit for unit in units}
    context = multiprocessing.get_context(_start_method())
    context.set_forkserver_preload(["pipeline.jobs", *_SLOW_IMPORTS])
    slots = context.Value("i", 0)
    while left:
        before = len(left)
        pool = ProcessPoolExecutor(min(workers, len(left)), context, _start_worker, (job, root, slots))
        try:
            for done in as_completed([pool.submit(_compute, unit) for unit in left.values()]):
                del left[done.result()]
                progress.advance()
        except BrokenProcessPool as error:
            if len(left) == before:
                raise UserError(
                    f"worker processes of {job.step} died before they finished anything, "
                    f"first at {next(iter(left.values())).label}; "
                    "if memory ran out, lower compute.workers or compute.memory in params.yaml"
                ) from error
            say(f"a worker process of {job.step} died; starting anew with the {len(left)} {job.noun} that are left")
        except BaseException:  # Ctrl-C, or an error in a worker: what is in flight is given up
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_method() -> str:
    """How worker processes begin: as forks of a process that has imported what they need, and nothing else.

    Spawned ones import it once each, as many seconds later. They are the choice where CUDA may have been looked up
    during an import, which a fork does not survive, and off Linux.
    """
    return "forkserver" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


_SLOW_IMPORTS = ("transformers.modeling_utils", "transformers.models.auto.modeling_auto", "transformers.generation")

_worker: Callable[[Unit], str] | None = None


def _start_worker(job: Job, root: Path, slots: Any) -> None:
    """What a worker process does first: load the model."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if torch.cuda.is_available():
        with slots.get_lock():
            slot, slots.value = slots.value, slots.value + 1
        torch.cuda.set_device(slot % torch.cuda.device_count())
    compute, store = job.worker(), Store(root)

    def work(unit: Unit) -> str:
        store.put_table(job.step, unit.key, compute(unit), unit.label)
        return unit.key

    _worker = work


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _compute(unit: Unit) -> str:
    assert _worker is not None
    return _worker(unit)
