"""Steps that make the edits of the edit stage again, by its own code, to measure another thing of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.compute.edit_job import EditJob
from pipeline.compute.keys import common, key
from pipeline.compute.work import Unit
from pipeline.edit.protocol import Method
from pipeline.facts.fact import Fact

if TYPE_CHECKING:
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class AgainJob:
    """A step over several jobs of the edit stage; a unit is one fact, method and problem.

    edits: a job for each method and problem, all of the same facts and settings; none of its own measures is kept.
    """

    params: Params
    edits: tuple[EditJob, ...]
    noun = "sets of edits"

    @property
    def model(self) -> dict[str, Any]:
        return self.edits[0].model

    def _units(self, step: str, module: str, **depends: Any) -> Sequence[Unit]:
        """The step's units, facts outermost, each of item (place in `edits`, fact).

        Each depends on what `module` computes, on its edits (their keys hold the fact) and on `depends`.
        """
        depends |= common(self.params, self.model, module)
        rows = zip(*(job.units() for job in self.edits), strict=True)
        return [
            Unit(
                key(**depends, step=step, edits=unit.key),
                f"{unit.label} {job.method.name} {job.problem}",
                (place, unit.item),
            )
            for row in rows
            for place, (job, unit) in enumerate(zip(self.edits, row, strict=True))
        ]


def edit_jobs(
    params: Params, model: dict[str, Any], facts: tuple[Fact, ...], sd: float, methods: Iterable[Method],
    problems: Sequence[str], made: tuple[dict[str, Any], tuple[str, ...]], folder: Path,
) -> tuple[EditJob, ...]:  # fmt: skip
    """A job for each method and problem; made: the statistics in `folder`."""
    return tuple(
        EditJob(params, model, facts, sd, method, problem, *made, folder) for method in methods for problem in problems
    )
