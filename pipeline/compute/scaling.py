"""The scaling stage's work, step by step: what each method's edits leave, and MEMIT by width and place of window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline.compute import beside, inputs, runs, statistics
from pipeline.compute.batches import Batch, layer_of, mixture_batches, scaling_batches, unedited
from pipeline.compute.edit_job import EditJob
from pipeline.compute.keys import path
from pipeline.compute.scaling_job import Made, ScalingJob, at_once
from pipeline.compute.sequence_job import RUN, Run, SequenceJob, Setting
from pipeline.compute.work import Job
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
    batches = [*scaling_batches(params, facts), *mixture_batches(params, facts)]
    place = {(batch.study, batch.n_edits, batch.number): i for i, batch in enumerate(batches)}
    tables = []
    for job in _jobs(params, model, facts, _tables):  # whose batches are in another order
        table = runs.run(job).to_pandas()
        of = pd.Series(list(zip(table["study"], table["n_edits"], table["batch"], strict=True)), dtype=object)
        tables.append(table.iloc[of.map(lambda batch: place.get(batch, -1)).argsort(kind="stable")])
    return pd.concat(tables, ignore_index=True)


def places(params: Params, model: dict[str, Any], facts: Sequence[Fact]) -> pd.DataFrame:
    """data/edits' rows of MEMIT for each window of `scaling.windows` at each of `scaling.layers`, one fact at a time;
    no rows where MEMIT is not among the methods.
    """
    tables = [runs.run(job).to_pandas() for job in _place_jobs(params, model, facts)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def jobs(params: Params, model: dict[str, Any], facts: Sequence[Fact]) -> list[Job]:
    """All jobs of the stage, to be asked for their units only: edits in sequence lack those that come before them.

    Raises UserError where a second moment is missing, or a method needs what the model has not.
    """
    rounds: list[Job] = []

    def noted(job: SequenceJob) -> list[tuple[pa.Table, ...]]:
        rounds.append(job)
        return [()] * len(job.runs)

    rest: list[Job] = [*_jobs(params, model, facts, noted), *_place_jobs(params, model, facts)]
    return rounds + rest


def _tables(job: SequenceJob) -> list[tuple[pa.Table, ...]]:
    """The table of each of the runs, which are computed where they are not in the store."""
    store = inputs.store(job.params)
    runs.run(job)
    found = [store.get_table(job.step, unit.key, unit.label) for unit in job.units()]
    return [(table,) for table in found if table is not None]


_Round = Callable[[SequenceJob], list[tuple[pa.Table, ...]]]  # from a round of runs to what the next is told of each


def _jobs(params: Params, model: dict[str, Any], facts: Sequence[Fact], make: _Round) -> Iterator[ScalingJob]:
    """The unedited model's, then each method's when it is asked for, its edits in sequence made by then."""
    batches, mixed = scaling_batches(params, facts), []
    if MIXED in params.scaling.methods:
        mixed = mixture_batches(params, facts)
    settings = [setting_of(params, model, method) for method in params.scaling.methods]
    whole = [at_once(setting, path(params, model) == "fast") for setting in settings]
    yield ScalingJob(params, model, None, tuple(Made(batch) for batch in unedited([*batches, *mixed])))
    for setting, once in zip(settings, whole, strict=True):
        own = batches + (mixed if setting.method.name == MIXED else [])
        made = tuple(Made(batch) for batch in own) if once else _in_sequence(setting, own, make)
        # The largest first, so that none is computed alone at the end.
        largest_first = sorted(made, key=lambda of: of.batch.n_edits, reverse=True)
        yield ScalingJob(params, model, setting, tuple(largest_first))


def _in_sequence(setting: Setting, batches: Sequence[Batch], make: _Round = _tables) -> tuple[Made, ...]:
    """The batches with their edits, made in rounds of runs of RUN edits each.

    A round waits for its longest run. So batches that need fewer rounds begin in different ones, and in each the
    longest run comes first: other workers then have something to do beside it.
    """
    made = [Made(batch) for batch in batches]
    needed = [-(-batch.n_edits // RUN) for batch in batches]
    rounds = max(needed, default=0)
    first = [i % (rounds - own + 1) for i, own in enumerate(needed)]
    for round_ in range(rounds):
        due = {}
        for i, batch in enumerate(batches):
            low = (round_ - first[i]) * RUN
            if 0 <= low < batch.n_edits:
                facts = batch.facts[low : low + RUN]
                due[i] = Run(f"{batch.label} from {low}", facts, made[i].runs, made[i].after)
        going = sorted(due, key=lambda i: len(due[i].facts), reverse=True)
        job = SequenceJob(setting.params, setting, tuple(due[i] for i in going))
        for i, unit, tables in zip(going, job.units(), make(job), strict=True):
            made[i] = Made(batches[i], (*made[i].runs, *tables), unit.key)
    return tuple(made)


def _place_jobs(params: Params, model: dict[str, Any], facts: Sequence[Fact]) -> Iterator[EditJob]:
    for window in params.scaling.windows if MIXED in params.scaling.methods else ():
        own = params.for_problem(MIXED, ERROR_INJECTION) | {"window": window}
        asked = params.with_layers(params.scaling.layers).with_section(MIXED, **own)
        made = statistics.read_for(asked, model, beside.STATISTICS, window)
        chosen = tuple(facts[: params.scaling.count])
        yield EditJob(asked, model, chosen, 1.0, METHODS[MIXED], ERROR_INJECTION, *made, beside.STATISTICS)
