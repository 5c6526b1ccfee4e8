"""The engine for a cluster: Ray actors with a model each, on whichever machines have room for them.

The driver (the stage's own process) hands each worker one unit at a time; the worker writes the result to the store
itself and answers with the unit's key. So a worker that dies costs the unit that it had, a driver that dies costs what
is in flight, and Ray ends a dead driver's workers. All machines see the project's folder under the same path.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from pipeline.compute.losses import SMALLER, Losses
from pipeline.compute.machine import WORKER_BYTES, cores
from pipeline.compute.store import Store
from pipeline.compute.work import Job, Unit
from pipeline.errors import UserError
from pipeline.lm.cache import VARIABLE, models_folder
from pipeline.lm.memory import share_of
from pipeline.progress import Progress, say
from pipeline.settings.params import Params
from pipeline.settings.sections import ComputeParams

try:
    import ray
    from ray import exceptions
except ImportError as error:
    raise UserError(
        "compute.engine is ray but the package ray is not installed; pip install -c constraints.txt -e '.[ray]', "
        "or set compute.engine to local"
    ) from error

TRIES = 3  # to join a cluster that is busy
PATIENCE = 30.0  # seconds without any worker after which the user is told what it waits for
LATE_FILES = 90.0  # seconds; a network file system may show another machine's files a minute late
OBJECT_STORE = 100 * 1024**2  # bytes of a cluster started here; only facts and keys pass through it
CODE = Path(__file__).parents[2].absolute()
SETTING = "lower compute.memory or raise compute.worker_memory in params.yaml"


def run(job: Job, store: Store, units: Sequence[Unit], threads: int, progress: Progress) -> None:
    """Compute `units` on the cluster. threads: CPU threads of each worker, as many as the local engine gives one."""
    compute = job.params.compute
    with _cluster(compute, threads):
        gpus = _gpus(job.params)
        # Where a GPU does the work, one thread feeds it, and the driver's number of cores means nothing.
        cpus = 1 if gpus and compute.threads == "auto" else threads
        needs = {"CPU": float(cpus), "GPU": gpus, "memory": float(compute.worker_bytes or 0)}
        params = job.params.model_copy(update={"compute": compute.model_copy(update={"threads": cpus})})
        _deal(replace(cast(Any, job), params=params), store.root, units, _workers(compute, needs), needs, progress)
    _see(job, store, units)


@contextmanager
def _cluster(compute: ComputeParams, threads: int) -> Iterator[None]:
    """Within: this process belongs to the cluster at compute.address."""
    if ray.is_initialized():  # by a caller, who also leaves it
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone
    options: dict[str, Any] = {"address": compute.address, "log_to_driver": False, "logging_level": "ERROR"}
    if compute.address == "local":
        asked = 0 if compute.workers == "auto" else compute.workers * threads
        options |= {"num_cpus": max(cores(), asked), "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        options["_node_ip_address"] = "127.0.0.1"  # else each process looks for a network first
    try:
        _join(options)
    except (OSError, RuntimeError, ValueError, ImportError, exceptions.RayError) as error:  # as Ray's versions differ
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"compute.address is {compute.address} but Ray could not join a cluster there ({reason}); "
            "start one with `ray start --head`, with the same RAY_AUTH_MODE there and here, or set compute.address to "
            "local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _join(options: dict[str, Any]) -> None:
    """ray.init, once more where the cluster's head had no server ready for this client in time, as when it is busy."""
    for left in reversed(range(TRIES)):
        try:
            _knock(options["address"])
            ray.init(**options)
            return
        except ConnectionAbortedError:
            if not left:
                raise
            say(f"the Ray cluster at {options['address']} is slow to answer; asked again")


def _knock(address: str) -> None:
    """Raise OSError where the cluster that `auto` means is gone; Ray would call for it without end."""
    known = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    head = os.environ.get("RAY_ADDRESS") or (known.read_text("utf-8") if known.is_file() else "")
    host, _, port = head.strip().rpartition(":")
    if address == "auto" and host and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _machines() -> list[dict[str, float]]:
    """What each machine of the cluster has: CPU, GPU, memory in bytes."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _gpus(params: Params) -> float:
    """GPUs of a worker; 0 where the model runs on a CPU."""
    device = params.model.device
    some = device == "auto" and any(machine.get("GPU", 0) for machine in _machines())
    return params.compute.worker_gpus if some or device == "cuda" else 0.0


def _workers(compute: ComputeParams, needs: dict[str, float]) -> int:
    """As many workers as compute.workers says; for auto, as many as the cluster's machines hold."""

    def holds(machine: dict[str, float]) -> int:
        # 1e-9: three workers with a third of a GPU each fit on one, whatever a third is in binary.
        room = min(int(machine.get(name, 0) / need + 1e-9) for name, need in needs.items() if need)
        if needs["GPU"] or needs["memory"]:
            return room
        return min(room, max(1, int(machine.get("memory", 0) / WORKER_BYTES)))  # as the local engine counts

    fit = sum(map(holds, _machines()))
    # A number waits for machines that may yet join; nothing joins a cluster of this machine alone.
    if fit == 0 and (compute.workers == "auto" or compute.address == "local"):
        raise UserError(
            f"no machine of the Ray cluster holds a worker, which takes {_told(needs)}; the largest has "
            f"{_told({name: max(has.get(name, 0) for has in _machines()) for name in needs})}; "
            "lower compute.threads, compute.worker_gpus or compute.worker_memory in params.yaml"
        )
    return fit if compute.workers == "auto" else compute.workers


def _told(resources: dict[str, float]) -> str:
    memory = f" and {resources['memory'] / 1024**3:.1f} GiB of memory" if resources["memory"] else ""
    return f"{resources['CPU']:g} CPUs, {resources['GPU']:g} GPUs{memory}"


class _Worker:
    """In a process of its own on one of the machines: a model, and the store."""

    def start(self, job: Job, root: Path, folder: Path, share: float) -> None:
        """Load the model. root: the store's; folder: the one in which the driver runs; share: as for `share_of`."""
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not on {socket.gethostname()}; every machine of the cluster must see the project's "
                "folder under the same path"
            )
        os.chdir(folder)
        self.step, self.keys = job.step, {unit.key for unit in job.units()}
        self.share, self.store = share, Store(root)
        with share_of(share):
            self.work: Callable[[Unit], pa.Table] = job.worker()

    def compute(self, unit: Unit) -> str:
        """Compute and store one unit; its key."""
        if unit.key not in self.keys:  # the key is a hash of the code too
            raise UserError(
                f"{CODE} on {socket.gethostname()} holds other code than the stage was started with; share one folder "
                "among the machines and leave its code alone during a run"
            )
        with share_of(self.share):
            table = self.work(unit)
        self.store.put_table(self.step, unit.key, table, unit.label)
        return unit.key


@dataclass(frozen=True)
class _Hired:
    """A worker, what it is to begin with, and the unit that it has; none while the model loads."""

    worker: Any
    share: float
    first: Unit | None
    unit: Unit | None = None


def _deal(job: Job, root: Path, units: Sequence[Unit], count: int, needs: dict[str, float], progress: Progress) -> None:
    """Hand out `units` to `count` workers, one at a time; each worker that dies is replaced."""
    actor = cast(Any, ray.remote(_Worker)).options(
        num_cpus=needs["CPU"],
        num_gpus=needs["GPU"],
        memory=needs["memory"] or None,
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": {"PYTHONPATH": f"{CODE}{os.pathsep}${{PYTHONPATH}}", VARIABLE: str(models_folder())}},
    )
    waiting, losses = deque(units), Losses(job, SETTING)
    flying: dict[Any, _Hired] = {}  # by reference to the answer
    anyone = False

    def hire(share: float = 1.0, first: Unit | None = None) -> None:
        worker = actor.remote()
        flying[worker.start.remote(job, root, Path.cwd(), share)] = _Hired(worker, share, first)

    try:
        for _ in range(min(count, len(units))):
            hire()
        while flying:
            answers, _ = ray.wait(list(flying), timeout=None if anyone else PATIENCE)
            if not answers:
                say(f"{job.step}: no worker is ready yet; each takes {_told(needs)} of the cluster")
            anyone = True
            for answer in answers:
                hired = flying.pop(answer)
                try:
                    ray.get(answer)
                except exceptions.RayTaskError as error:
                    raise _plain(error) from error
                except exceptions.RayError as error:  # the worker, its machine, or the way to it is gone
                    ray.kill(hired.worker)
                    how, memory = _ended(error)
                    if losses.lost(hired.unit, how, memory=memory):
                        hire(SMALLER if hired.unit and memory else hired.share, hired.unit or hired.first)
                    elif waiting:
                        hire(hired.share)
                    continue
                if hired.unit:
                    losses.finished()
                    progress.advance()
                unit = hired.first or (waiting.popleft() if waiting else None)
                if unit:
                    flying[hired.worker.compute.remote(unit)] = replace(hired, first=None, unit=unit)
                else:
                    ray.kill(hired.worker)
    finally:
        for hired in flying.values():
            ray.kill(hired.worker)
    losses.end()


def _plain(error: exceptions.RayTaskError) -> BaseException:
    """What a worker raised, as it would have been raised here."""
    if "failed to import on the worker" in str(error):
        return UserError(
            f"a machine of the Ray cluster can't import the project from {CODE}; every machine must see that folder "
            "under the same path, and run Ray with a Python that has the project's packages"
        )
    return error.cause if isinstance(error.cause, UserError) else error


def _ended(error: exceptions.RayError) -> tuple[str, bool]:
    """How a worker that is gone came to its end, in words, and whether that is how a lack of memory shows.

    Of a process that was killed Ray says that memory may be why; of a machine that is gone, that it is gone.
    """
    reason = str(error).strip().splitlines()[0].rstrip(".")
    memory = isinstance(error, exceptions.OutOfMemoryError) or "memory" in str(error)
    return (f"died as where memory runs out (SIGKILL, exit 137; {reason})" if memory else f"died ({reason})"), memory


def _see(job: Job, store: Store, units: Sequence[Unit]) -> None:
    """Wait until the workers' files are seen here."""
    end, missing = time.monotonic() + LATE_FILES, list(units)
    while missing := [unit for unit in missing if not store.has(job.step, unit.key)]:
        if time.monotonic() > end:
            raise UserError(
                f"{missing[0].label} of {job.step} was computed but is not in {store.root.absolute()} here; that must "
                "be the same folder on every machine of the cluster"
            )
        time.sleep(0.5)
