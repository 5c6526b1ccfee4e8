"""The units of the essence stage: the edit stage's edits again, and what they make of the perplexity of texts about the
fact's subject (pipeline.measure.essence).

The edits are made by the edit stage's own code, so they are the same; only what is measured of them is another thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.compute.again import AgainJob, edit_jobs
from pipeline.compute.edit_job import EditJob, EditWorker
from pipeline.compute.machine import loaded
from pipeline.compute.work import Unit
from pipeline.edit.protocol import Edit, Method
from pipeline.facts.fact import Fact
from pipeline.lm.memory import halving, head_rows, rows_within
from pipeline.measure.collapse import Harm
from pipeline.measure.essence import Essence
from pipeline.tables import to_arrow

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

COLUMNS = ("fact_id", "method", "problem", "layer", "perplexity_pre", "perplexity_post", "status")


@dataclass(frozen=True)
class EssenceJob(AgainJob):
    """Perplexities before and after edits of every layer; a unit is one fact, method and problem."""

    step = "essence"

    @classmethod
    def of_run(
        cls, params: Params, model: dict[str, Any], facts: tuple[Fact, ...], sd: float, methods: Mapping[str, Method],
        made: tuple[dict[str, Any], tuple[str, ...]], folder: Path,
    ) -> EssenceJob:  # fmt: skip
        """Edits by the run's methods for its problems, of its first facts or all; made: the statistics in `folder`."""
        chosen, by = facts[: params.essence.count], [methods[method] for method in params.edit.methods]
        return cls(params, edit_jobs(params, model, chosen, sd, by, params.edit.problems, made, folder))

    def units(self) -> Sequence[Unit]:
        settings, seed = self.params.essence, self.params.seed
        return self._units(self.step, __name__, seed=seed, texts=settings.texts, tokens=settings.tokens)

    def worker(self) -> Callable[[Unit], pa.Table]:
        params, model = self.params, self.model
        texts = _Texts(params, loaded(params, model))
        workers: dict[int, _EssenceWorker] = {}

        def compute(unit: Unit) -> pa.Table:
            place, fact = unit.item
            if place not in workers:
                workers[place] = _EssenceWorker(self.edits[place], texts)
            return to_arrow(workers[place].perplexities(fact))

        return compute


class _Texts:
    """Texts about the subject of the last fact asked for, on which all methods and problems are measured."""

    def __init__(self, params: Params, lm: LanguageModel):
        self.params, self.lm = params, lm
        self._last: tuple[Fact, Essence, float] | None = None

    def of(self, fact: Fact, memory: int) -> tuple[Essence, float]:
        """The texts, of the unedited model, and their perplexity; memory: bytes that a batch may take.

        UserError where the prompt about the subject leaves no token to sample.
        """
        if self._last is None or self._last[0] != fact:
            settings = self.params.essence
            texts = Essence.sampled(self.lm, fact, self.params.seed, texts=settings.texts, length=settings.tokens)
            before = halving(lambda allowed: texts.before(head_rows(self.lm, allowed)), memory)
            self._last = fact, texts, before
        return self._last[1:]


class _EssenceWorker(EditWorker):
    """Edits facts as the edit stage does, with texts about each fact's subject in place of a text of no subject."""

    def __init__(self, job: EditJob, texts: _Texts):
        super().__init__(job, texts.lm)
        self.texts = texts
        self.fact: Fact | None = None

    def perplexities(self, fact: Fact) -> pd.DataFrame:
        """data/essence's rows of one fact but for its score, a row a layer; NaN where there is no edit."""
        self.fact = fact
        once = self.frame(fact).drop_duplicates("layer", ignore_index=True)
        names = {"text_loss_pre": "perplexity_pre", "text_loss_post": "perplexity_post"}
        return once.rename(columns=names)[list(COLUMNS)]

    def _harm(self, edits: Sequence[Edit]) -> Harm:
        """What the edits do to the texts: perplexities stand where the edit stage has losses."""
        assert self.fact is not None
        memory, unknown = self._memory(gradient=False), np.full(len(edits), np.nan)
        essence, before = self.texts.of(self.fact, memory)
        if self.path == "plain":
            return Harm(unknown, before, np.array([essence.plain(edit) for edit in edits]))

        def work(allowed: int) -> np.ndarray:
            rows, head = rows_within(self.lm, allowed, 0, gradient=False), head_rows(self.lm, allowed)
            return essence.after(edits, before, rows, head)

        return Harm(unknown, before, halving(work, memory))
