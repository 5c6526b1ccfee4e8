"""The engine for one machine: units computed by this process, or by several with a model each.

On a CPU several processes are faster than one with several threads: the products of one edit are small, and threads
wait for each other at every one of them.
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
from pathlib import Path
from typing import Any

import torch

from pipeline.compute.store import Store
from pipeline.compute.work import Job, Unit
from pipeline.errors import UserError
from pipeline.progress import Progress, say


def run(job: Job, store: Store, units: Sequence[Unit], workers: int, progress: Progress) -> None:
    """Compute and store `units`, with as many processes as `workers` says; one means this process."""
    if min(workers, len(units)) > 1:
        _run_in_processes(job, store.root, units, workers, progress)
        return
    compute = job.worker()
    for unit in units:
        store.put_table(job.step, unit.key, compute(unit), unit.label)
        progress.advance()


def _run_in_processes(job: Job, root: Path, units: Sequence[Unit], workers: int, progress: Progress) -> None:
    """Compute `units` in `workers` processes; a worker that dies costs the units in flight, which are tried again."""
    left = {unit.key: unit for unit in units}
    context = multiprocessing.get_context(_start_method())
    context.set_forkserver_preload([type(job).__module__, *_SLOW_IMPORTS])
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
