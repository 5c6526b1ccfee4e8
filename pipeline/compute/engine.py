"""Running a job: what is in the store is taken from there, the rest is computed and stored, here or on a cluster.

The assembled table has the same bytes however often the run was interrupted, on however many workers, by either engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyarrow as pa

from pipeline.compute import local
from pipeline.compute.store import Store
from pipeline.compute.work import Job
from pipeline.errors import UserError
from pipeline.progress import track
from pipeline.watch import Work

USED: set[tuple[str, str]] = set()  # step and key of all units that this process has run or found


def run(job: Job, store: Store, crew: tuple[int, int], before: Callable[[], object] = lambda: None) -> pa.Table:
    """The tables of all units of `job`, one after the other in the units' order.

    crew: how many workers on this machine, and the CPU threads of each; a cluster has a number of its own. before: is
    called once if anything is missing, such as to fetch the model before the workers load it.
    """
    workers, threads = crew
    units = job.units()
    missing = [unit for unit in units if store.get_table(job.step, unit.key, unit.label) is None]
    USED.update((job.step, unit.key) for unit in units)
    Work.count(len(units), len(units) - len(missing))
    if missing:
        before()
        if job.params.compute.engine == "ray":
            from pipeline.compute import ray_engine  # only here: Ray is an extra

            compute = partial(ray_engine.run, job, store, missing, threads)
        else:
            compute = partial(local.run, job, store, missing, workers)
        with track(len(missing), job.step, job.noun) as progress:
            compute(progress)
    tables = []
    for unit in units:
        table = store.get_table(job.step, unit.key, unit.label)
        if table is None:
            raise UserError(f"{unit.label} of {job.step} was lost from {store.root} during the run; run again")
        tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables)
