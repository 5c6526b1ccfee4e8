"""The jobs of the three long stages, made of params and of what earlier stages wrote: a stage runs its job, and
`stages.status` counts all of them.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.facts import FactFile, of_relations, read_fact_file, trim
from pipeline.jobs import EditJob, KnownJob, TraceJob
from pipeline.params import Params
from stages import _inputs


def candidates(params: Params) -> FactFile:
    """The facts of the fact file that this run may choose from, and the records left out."""
    settings = params.facts
    file = of_relations(read_fact_file(settings.source, Path(settings.path), params.seed), settings.relations)
    return FactFile(trim(file.facts, settings.max_paraphrases, settings.max_neighborhood), file.left_out)


def known(params: Params, file: FactFile) -> KnownJob:
    """What the model knows of each candidate."""
    return KnownJob(params, _inputs.model(params), tuple(file.facts))


def trace(params: Params) -> TraceJob:
    """The traces of the chosen facts."""
    return TraceJob(params, _inputs.model(params), _inputs.facts(), _inputs.sd(params))


def edit(params: Params, method: str, problem: str) -> EditJob:
    """The edits of the chosen facts by one method for one problem."""
    model = _inputs.model(params)
    manifest, prefixes, folder = _inputs.moments(params, model)
    return EditJob(params, model, _inputs.facts(), _inputs.sd(params), method, problem, manifest, prefixes, folder)
