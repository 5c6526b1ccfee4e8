"""The engine for one machine: units computed by this process, or by several with a model each.

On a CPU several processes are faster than one with several threads: the products of one edit are small, and threads
wait for each other at every one of them. Each process is handed one unit at a time, so that one that dies costs that
unit alone; `pipeline.compute.losses` says what becomes of it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from pipeline.compute.losses import SMALLER, Losses
from pipeline.compute.store import Store
from pipeline.compute.work import Job, Unit
from pipeline.errors import UserError
from pipeline.lm.memory import share_of
from pipeline.progress import Progress

SETTING = "lower compute.memory or compute.workers in params.yaml"


def run(job: Job, store: Store, units: Sequence[Unit], workers: int, progress: Progress) -> None:
    """Compute and store `units`, with as many processes as `workers` says; one means this process."""
    if workers > 1:  # for a single unit too: it may be one that ends whoever computes it
        _deal(job, store.root, units, workers, progress)
        return
    compute = job.worker()
    for unit in units:
        store.put_table(job.step, unit.key, compute(unit), unit.label)
        progress.advance()


@dataclass
class _Worker:
    """A process, the way to it, and the unit that it has; none while the model loads. number: from 0 to workers - 1."""

    process: Any
    link: Connection
    number: int
    share: float
    first: Unit | None  # what it is to begin with
    unit: Unit | None = None


def _deal(job: Job, root: Path, units: Sequence[Unit], workers: int, progress: Progress) -> None:
    """Hand out `units` to processes, one at a time; each that dies is replaced."""
    context: Any = multiprocessing.get_context(_start_method())
    context.set_forkserver_preload([type(job).__module__, *_SLOW_IMPORTS])
    waiting, losses = deque(units), Losses(job, SETTING)
    team: list[_Worker] = []

    def hire(number: int, share: float = 1.0, first: Unit | None = None) -> None:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, job, root, number, share))
        process.start()
        there.close()  # so that the process's end is the end of the line
        team.append(_Worker(process, here, number, share, first))

    try:
        for number in range(min(workers, len(units))):
            hire(number)
        while team:
            ready = wait([worker.link for worker in team])
            for worker in [worker for worker in team if worker.link in ready]:
                try:
                    error = worker.link.recv()
                except (EOFError, OSError):
                    team.remove(worker)
                    how, memory = _ended(worker)
                    lost = worker.unit
                    if losses.lost(lost, how, memory=memory):
                        share = SMALLER if lost and memory else worker.share
                        hire(worker.number, share, lost or worker.first)
                    elif waiting:
                        hire(worker.number, worker.share)
                    continue
                if error is not None:
                    raise _told(*error)
                if worker.unit:
                    losses.finished()
                    progress.advance()
                worker.unit, worker.first = worker.first or (waiting.popleft() if waiting else None), None
                with contextlib.suppress(OSError):  # it died since: the next turn of the loop sees that
                    worker.link.send(worker.unit)
                if worker.unit is None:
                    team.remove(worker)
                    worker.link.close()
    finally:  # after Ctrl-C or an error, what is in flight is given up
        for worker in team:
            worker.process.terminate()
    losses.end()


def _ended(worker: _Worker) -> tuple[str, bool]:
    """How a worker that is gone came to its end, in words, and whether that is how a lack of memory shows."""
    worker.link.close()
    worker.process.join()
    code = worker.process.exitcode
    if code == -signal.SIGKILL:
        return "was ended by the system (SIGKILL, exit 137), as it is where memory runs out,", True
    if code < 0:
        return f"was ended by {signal.Signals(-code).name} (exit {128 - code})", False
    return f"ended itself with exit status {code}", False


def _told(error: BaseException, trace: str) -> BaseException:
    """What a worker raised, as it would have been raised here, with its traceback for all but a user's mistake."""
    if not isinstance(error, UserError):
        error.add_note(f"in a worker process:\n{trace}")
    return error


def _start_method() -> str:
    """How worker processes begin: as forks of a process that has imported what they need, and nothing else.

    Spawned ones import it once each, as many seconds later. They are the choice where CUDA may have been looked up
    during an import, which a fork does not survive, and off Linux.
    """
    return "forkserver" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"


_SLOW_IMPORTS = ("transformers.modeling_utils", "transformers.models.auto.modeling_auto", "transformers.generation")


def _work(link: Connection, job: Job, root: Path, number: int, share: float) -> None:
    """A worker process: load the model, then compute what comes until nothing does. Answers None, or an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    try:
        with share_of(share):
            compute, store = job.worker(), Store(root)
            link.send(None)
            while unit := link.recv():
                store.put_table(job.step, unit.key, compute(unit), unit.label)
                link.send(None)
    except Exception as error:
        # Errors of other kinds may hold what can't be sent; their traceback tells the rest.
        plain = type(error) is UserError or type(error).__module__ == "builtins"
        sent = error if plain else RuntimeError(f"{type(error).__name__}: {error}")
        link.send((sent, traceback.format_exc()))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work forever, or finish its unit in vain."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
