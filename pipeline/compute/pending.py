"""The units that the current settings ask for, step by step, as far as they can be known without running a stage.

What the stages `model`, `facts` and `statistics` wrote counts only while it is what params.yaml asks for; otherwise the
steps that build on it wait. No model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.compute import inputs, maps_job, probe, robustness, scaling, statistics
from pipeline.compute.batches import once_each
from pipeline.compute.edit_job import EditJob
from pipeline.compute.essence_job import EssenceJob
from pipeline.compute.known_job import KnownJob
from pipeline.compute.localize_job import LocalizeJob
from pipeline.compute.override_job import OverrideJob
from pipeline.compute.store import Store
from pipeline.compute.trace_job import TraceJob
from pipeline.compute.work import Job, Unit
from pipeline.edit.methods import METHODS, widest_window
from pipeline.errors import UserError
from pipeline.facts.choose import KnownRule, choose
from pipeline.facts.fact import FactFile
from pipeline.locate.localizers import LOCALIZERS
from pipeline.settings.params import Params
from pipeline.settings.yaml_errors import read_yaml
from pipeline.tables import read_record

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")


def steps(settings: Params, store: Store) -> dict[str, Sequence[Unit] | str]:
    """Units of every step, or "STAGE: why" for what it waits for."""
    file = inputs.candidates(settings)
    model = _why("model", lambda: _model_fits(settings))
    facts = model or _why("facts", lambda: _facts_fit(settings, file, store))
    moments = facts or _why("statistics", lambda: _statistics_fit(settings))
    found: dict[str, Sequence[Unit] | str] = {
        "known": model or KnownJob(settings, inputs.model(settings), tuple(file.facts)).units(),
        "trace": facts or _trace(settings).units(),
        "localize": facts or _localize(settings).units(),
    }
    for method in settings.edit.methods:
        for problem in settings.edit.problems:
            found[f"edit-{method}-{problem}"] = moments or _edit(settings, method, problem).units()
    if (store.root / EssenceJob.step).is_dir():  # not every run has it
        found[EssenceJob.step] = moments or _essence(settings).units()
    if (store.root / OverrideJob.step).is_dir():
        found[OverrideJob.step] = moments or _override(settings)
    return found if facts else found | _begun(settings, store, found)


def beside(settings: Params, found: Mapping[str, Sequence[Unit] | str]) -> set[tuple[str, str]]:
    """(step, key) of the units of stages of measures/dvc.yaml, as far as they are known; found: `steps`' answer.

    Those of maps, robustness and scaling, also where they are not all done; of the others, those that a stage wrote
    down with these settings, at its end or as it went.
    """
    if isinstance(found["trace"], str):  # they build on the same files
        return set()
    needed = {(job.step, unit.key) for job in _beside(settings) for unit in job.units()}
    model = inputs.model(settings)
    for name, _, record in [*inputs.measured(), *inputs.begun()]:
        if inputs.fits(settings, name, record) and record["model"] == model["fingerprint"]:
            needed |= {(str(step), str(key)) for step, key in record["units"]}
    return needed


def _beside(settings: Params) -> list[Job]:
    """The jobs of the stages maps, robustness and, where its second moments are there, scaling."""
    model, facts, sd = inputs.model(settings), inputs.facts(), inputs.sd(settings)
    jobs: list[Job] = [*maps_job.jobs(settings, model, facts, sd)]
    varied = robustness.variants(settings, model, facts[: settings.robustness.count])
    jobs += [variant.job for variant in varied]
    with suppress(UserError):  # stage `moments` has not run with these settings, or the model will not do
        jobs += scaling.jobs(settings, model, once_each(inputs.known()))
    return jobs


def _begun(settings: Params, store: Store, main: Mapping[str, Any]) -> dict[str, list[Unit]]:
    """Units by step, of those stages' steps that have something in the store and are none of `main`."""
    found: dict[str, list[Unit]] = {}
    for job in _beside(settings):
        if job.step not in main and (store.root / job.step).is_dir():
            found.setdefault(job.step, []).extend(job.units())
    return found


def _trace(settings: Params) -> TraceJob:
    return TraceJob(settings, inputs.model(settings), inputs.facts(), inputs.sd(settings))


def _localize(settings: Params) -> LocalizeJob:
    chosen = tuple(LOCALIZERS[name] for name in settings.localize.methods)
    return LocalizeJob(settings, inputs.model(settings), inputs.facts(), inputs.sd(settings), chosen)


def _edit(settings: Params, method: str, problem: str) -> EditJob:
    model = inputs.model(settings)
    made = statistics.read_for(settings, model, inputs.STATISTICS, 0)
    text = probe.read_for(settings, model, inputs.STATISTICS)
    return EditJob(
        settings, model, inputs.facts(), inputs.sd(settings), METHODS[method], problem, *made, inputs.STATISTICS, text
    )


def _essence(settings: Params) -> EssenceJob:
    model = inputs.model(settings)
    made = statistics.read_for(settings, model, inputs.STATISTICS, 0)
    return EssenceJob.of_run(settings, model, inputs.facts(), inputs.sd(settings), METHODS, made, inputs.STATISTICS)


def _override(settings: Params) -> Sequence[Unit] | str:
    model = inputs.model(settings)
    made = statistics.read_for(settings, model, inputs.STATISTICS, 0)
    of = settings, model, inputs.facts(), inputs.sd(settings), METHODS, made, inputs.STATISTICS
    try:
        return OverrideJob.of_run(*of).units()
    except UserError as error:
        return f"override: {error}"


def _why(stage: str, unfit: Callable[[], str]) -> str:
    """Why the stage's files are not what the settings ask for; empty where they are."""
    try:
        why = unfit()
    except UserError as error:
        why = str(error)
    return why and f"{stage}: {why}"


def _model_fits(settings: Params) -> str:
    model: dict[str, Any] = inputs.model(settings)
    for key in ("name", "dtype", "add_bos"):
        if model.get(key) != getattr(settings.model, key):
            return f"data/model.json has {key} {model.get(key)!r}, params.yaml {getattr(settings.model, key)!r}"
    # What model.json doesn't say, such as the revision, DVC has written down where it ran the stage.
    if LOCK.exists():
        try:
            ran = read_yaml(LOCK, 10**7)["stages"]["model"]["params"][str(PARAMS)]
        except (KeyError, TypeError):
            return "dvc.lock does not know this stage"
        now = read_yaml(PARAMS)
        if changed := [key for key in ran if ran[key] != now.get(key)]:
            return f"`{changed[0]}` in params.yaml was changed since it ran"
    return ""


def _facts_fit(settings: Params, file: FactFile, store: Store) -> str:
    """The chosen facts follow from the file and the stored measurements; are they those of data/facts.parquet?"""
    job = KnownJob(settings, inputs.model(settings), tuple(file.facts))
    tables = [store.get_table(job.step, unit.key, unit.label) for unit in job.units()]
    measured = [table for table in tables if table is not None]
    if len(measured) < len(tables):
        return f"{len(tables) - len(measured)} of {len(tables)} {job.noun} are not measured yet"
    chosen = choose(
        file.facts,
        job.read(pa.concat_tables(measured)),
        KnownRule(**settings.facts.known.model_dump()),
        settings.facts.count,
    )
    if inputs.facts() != tuple(fact for fact, (kept, _) in zip(file.facts, chosen, strict=True) if kept):
        return "data/facts.parquet holds other facts than the settings choose now"
    if not (left_out := inputs.DATA / "left_out.csv").is_file():
        return f"{left_out} is not there"
    subjects = read_record(inputs.DATA / "embedding_sd.json", subjects=int)["subjects"]
    if subjects != len({fact.subject for fact in file.facts}):
        return "data/embedding_sd.json is of other subjects"
    inputs.sd(settings)
    return ""


def _statistics_fit(settings: Params) -> str:
    statistics.read_for(settings, inputs.model(settings), inputs.STATISTICS, widest_window(settings))
    probe.read_for(settings, inputs.model(settings), inputs.STATISTICS)
    return ""
