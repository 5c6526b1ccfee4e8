"""A job run as a stage runs it: by the settings' engine and workers, out of the run's store, with the model at hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from pipeline.compute import engine, fetch, inputs
from pipeline.compute.machine import crew
from pipeline.compute.store import Store
from pipeline.compute.text_job import TextJob
from pipeline.compute.work import Job
from pipeline.settings.params import Params


def run(job: Job, store: Store | None = None) -> pa.Table:
    """The table of all of the job's units. store: where they are kept, the run's own where it is None.

    The model is fetched or made, where it has to be, before the first worker needs it.
    """
    params = job.params
    fetched = partial(fetch.ensure, params.model.name, params.seed)
    return engine.run(job, store or inputs.store(params), crew(params), fetched)


def sampled_text(params: Params, model: dict[str, Any], folder: Path) -> Sequence[Tensor] | None:
    """The text that the model writes for its second moments, token ids of (B, T) each; None where it is another's.

    folder: a store for what is written so far, so that an interrupted run goes on from it.
    """
    if params.statistics.text != "model":
        return None
    job = TextJob(params, model)
    return job.read(run(job, Store(folder)))
