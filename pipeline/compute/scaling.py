"""The scaling stage's work, step by step: what each method's edits leave, and MEMIT by width and place of window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipeline.compute import beside, inputs, runs, statistics
from pipeline.compute.batches import Batch, layer_of, mixture_batches, scaling_batches, unedited
from pipeline.compute.edit_job import EditJob
from pipeline.compute.keys import path
from pipeline.compute.scaling_job import Made, ScalingJob, at_once
from pipeline.compute.sequence_job import RUN, Run, SequenceJob, Setting
from pipeline.edit.methods import METHODS, moments_window
from pipeline.facts.fact import Fact
from pipeline.settings.params import Params
from pipeline.tables import ERROR_INJECTION

MIXED = "memit"  # the method of the mixtures and of the sweep over windows


def setting_of(params: Params, model: dict[str, Any], method: str) -> Setting:
    """What all batches of a method share. Raises UserError where a second moment that it needs is missing."""
    layer = layer_of(params, method, model)
    made = statistics.read_for(params.with_layers([layer]), model, beside.STATISTICS, moments_window(params, method))
    return Setting(params, model, METHODS[method], layer, *made, beside.STATISTICS)


def many_at_once(params: Params, model: dict[str, Any], facts: Sequence[Fact]) -> pd.DataFrame:
    """A row for each method, batch, fact and prompt, the unedited model's first."""
    batches, mixed = scaling_batches(params, facts), []
    if MIXED in params.scaling.methods:
        mixed = mixture_batches(params, facts)
    settings = [setting_of(params, model, method) for method in params.scaling.methods]
    whole = [at_once(setting, path(params, model) == "fast") for setting in settings]
    plain = ScalingJob(params, model, None, tuple(Made(batch) for batch in unedited([*batches, *mixed])))
    tables = [runs.run(plain)]
    for setting, once in zip(settings, whole, strict=True):
        own = batches + (mixed if setting.method.name == MIXED else [])
        made = tuple(Made(batch) for batch in own) if once else _in_sequence(setting, own)
        tables.append(runs.run(ScalingJob(params, model, setting, made)))
    return pd.concat([table.to_pandas() for table in tables], ignore_index=True)


def _in_sequence(setting: Setting, batches: Sequence[Batch]) -> tuple[Made, ...]:
    """The batches with their edits, made in rounds of runs of RUN edits each."""
    store = inputs.store(setting.params)
    made = [Made(batch) for batch in batches]
    most = max((batch.n_edits for batch in batches), default=0)
    for low in range(0, most, RUN):
        going = [i for i, batch in enumerate(batches) if batch.n_edits > low]
        due = tuple(
            Run(f"{batches[i].label} from {low}", batches[i].facts[low : low + RUN], made[i].runs, made[i].after)
            for i in going
        )
        job = SequenceJob(setting, due)
        runs.run(job)
        for i, unit in zip(going, job.units(), strict=True):
            table = store.get_table(job.step, unit.key, unit.label)
            assert table is not None
            made[i] = Made(batches[i], (*made[i].runs, table), unit.key)
    return tuple(made)


def places(params: Params, model: dict[str, Any], facts: Sequence[Fact]) -> pd.DataFrame:
    """data/edits' rows of MEMIT for each window of `scaling.windows` at each of `scaling.layers`, one fact at a time;
    no rows where MEMIT is not among the methods.
    """
    tables = []
    for window in params.scaling.windows if MIXED in params.scaling.methods else ():
        own = params.for_problem(MIXED, ERROR_INJECTION) | {"window": window}
        asked = params.with_layers(params.scaling.layers).with_section(MIXED, **own)
        made = statistics.read_for(asked, model, beside.STATISTICS, window)
        chosen = tuple(facts[: params.scaling.count])
        job = EditJob(asked, model, chosen, 1.0, METHODS[MIXED], ERROR_INJECTION, *made, beside.STATISTICS)
        tables.append(runs.run(job).to_pandas())
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
