"""The units of the edit stage: edits of every layer by one method for one problem, with the probabilities before and
after, and with what they do to the model as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.compute.editors import editor
from pipeline.compute.keys import common, key, path
from pipeline.compute.machine import loaded
from pipeline.compute.work import Unit
from pipeline.edit import problems
from pipeline.edit.protocol import Edit, EditRequest, Method, failed
from pipeline.errors import UserError
from pipeline.facts import known
from pipeline.facts.fact import Fact
from pipeline.lm.forward import Suffix
from pipeline.lm.memory import budget, halving, head_rows, rows_within
from pipeline.lm.noise import FreshNoise, NoiseTable
from pipeline.measure.collapse import Harm, ProbeText, Weights
from pipeline.measure.probabilities import Measurement, Question, edit_frame, prompt_kinds, questions
from pipeline.tables import to_arrow

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class EditJob:
    """Edits of every layer with their scores' probabilities; a unit is one fact.

    statistics: the manifest of the statistics stage; prefixes: its context prefixes; folder: where its second
    moments are; probe: token ids of the text whose loss is measured, in pieces, () for none.
    """

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    sd: float
    method: Method
    problem: str
    statistics: dict[str, Any]
    prefixes: tuple[str, ...]
    folder: Path
    probe: tuple[tuple[int, ...], ...] = ()

    @property
    def step(self) -> str:
        return f"edit-{self.method.name}-{self.problem}"

    noun = "facts"

    @property
    def layers(self) -> list[int]:
        return self.params.edit.layer_list(self.model["layers"], self.method.name)

    def units(self) -> Sequence[Unit]:
        params, problem = self.params, problems.PROBLEMS[self.problem]
        depends = common(params, self.model, __name__, self.method.module)
        depends |= {
            "problem": self.problem,
            "method": self.method.name,
            "settings": params.for_problem(self.method.name, self.problem),
            "layers": self.layers,
            "statistics": self.statistics["source_key"],
            "prefixes": self.prefixes,
            "ridge": params.statistics.ridge,
            "probe": self.probe,
        }
        if problem.target == "noise":
            depends |= {"seed": params.seed, "sd": self.sd, "samples": params.noise.samples}
            depends["word"] = params.edit.reversal_target
        if problem.noised:
            depends |= {"seed": params.seed, "sd": self.sd, "samples": params.edit.forcing_noise_samples}
        if problem.minimise:
            depends["min_p"] = params.edit.erasure_min_p
        return [Unit(key(**depends, step=self.step, fact=asdict(fact)), fact.fact_id, fact) for fact in self.facts]

    def worker(self) -> Callable[[Unit], pa.Table]:
        worker = EditWorker(self, loaded(self.params, self.model))
        return lambda unit: to_arrow(worker.frame(unit.item))


class EditWorker:
    """Edits facts one after the other with one model."""

    def __init__(self, job: EditJob, lm: LanguageModel):
        self.job, self.lm, self.params = job, lm, job.params
        self.problem = problems.PROBLEMS[job.problem]
        self.path = path(self.params, job.model)
        chosen = job.params.for_problem(job.method.name, job.problem)
        self.update_key = str(chosen.get("key", ""))  # a method without that setting has no key to choose
        self.editor = editor(lm, job.params, job.model, job.method, job.problem, job.folder)
        self.weights = Weights(lm)
        self.probe = ProbeText(lm, job.probe) if job.probe else None  # one for all facts, as is its run
        self._text_loss: float | None = None

    def frame(self, fact: Fact) -> pd.DataFrame:
        """data/edits' rows of one fact; a fact that cannot be edited has rows that say why."""
        return self.edited(fact)[0]

    def edited(self, fact: Fact) -> tuple[pd.DataFrame, list[Edit]]:
        """`frame`, and the edits themselves."""
        target = baseline = ""
        try:
            o_noise = self._noised_answer(fact) if self.problem.target == "noise" else None
            target, baseline = problems.objects(self.problem, fact, o_noise)
            if not target:
                raise _NotEdited(f"dropped: under noise the model goes on with no {self._word()}")
            if o_noise is not None and problems.same_answer(o_noise, fact.target_true):
                raise _NotEdited("dropped: under noise the model still says target_true")
            editing, scoring, draws = self._forcing_noise(fact) if self.problem.noised else (None, None, 0)
            asked = questions(self.lm, fact, target, baseline, draws)
            measurement = Measurement(self.lm, asked, scoring)
            before = measurement.before()
            if self.problem.minimise and before[0, 0] < self.params.edit.erasure_min_p:
                raise _NotEdited(f"dropped: p(true) is below {self.params.edit.erasure_min_p:g}")
            of = self.lm, self.problem, fact, target, self.job.prefixes, editing, baseline
            edits = self._edit(problems.edit_request(*of))
            after, harm = self._after(measurement, edits, asked), self._harm(edits)
        except (UserError, _NotEdited) as error:
            reason = str(error) if isinstance(error, _NotEdited) else f"failed: {error}"
            edits = [failed(layer, reason) for layer in self.job.layers]
            kinds = prompt_kinds(fact)
            before, after = np.full((len(kinds), 2), np.nan), np.full((len(edits), len(kinds), 2), np.nan)
            harm = Harm.unknown(len(edits))
        edits = [_checked(edit, after[e]) for e, edit in enumerate(edits)]
        method, window = self.job.method.name, self.editor.window
        frame = edit_frame(fact, self.job.problem, method, window, target, baseline, before, edits, after, harm)
        return frame.assign(update_key=self.update_key), edits

    def _noised_answer(self, fact: Fact) -> str:
        samples, kind = self.params.noise.samples, self.params.edit.reversal_target
        noise = NoiseTable(self.params.seed, fact.fact_id, self.job.sd, samples, self.lm.embedding_width)
        return problems.noised_answer(self.lm, known.fact_prompt(self.lm, fact), noise, samples, kind)

    def _word(self) -> str:
        return "content word" if self.params.edit.reversal_target == "first_content_word" else "word"

    def _forcing_noise(self, fact: Fact) -> tuple[FreshNoise, NoiseTable, int]:
        """Noise for editing and, of another stream, for scoring, with the latter's number of draws."""
        draws = self.params.edit.forcing_noise_samples
        of = (self.params.seed, fact.fact_id, self.job.sd)
        width = self.lm.embedding_width
        return FreshNoise(*of, width), NoiseTable(*of, draws, width, "score"), draws

    def _edit(self, request: EditRequest) -> list[Edit]:
        def work(allowed: int) -> list[Edit]:
            return self.editor.edit(self.lm, request, self.job.layers, allowed)

        return halving(work, self._memory(gradient=True))

    def _memory(self, *, gradient: bool) -> int:
        return budget(self.params.compute.memory_bytes, self.lm.device, gradient=gradient)

    def _after(self, measurement: Measurement, edits: Sequence[Edit], asked: Sequence[Question]) -> np.ndarray:
        if self.path == "plain":
            blank = np.full((len(asked), 2), np.nan)
            return np.stack([measurement.plain(edit) if edit.status == "ok" else blank for edit in edits])

        def work(allowed: int) -> np.ndarray:
            def rows(suffix: Suffix) -> int:
                return rows_within(self.lm, allowed, len(measurement.nodes), gradient=False)(suffix)

            return measurement.after(edits, rows)

        return halving(work, self._memory(gradient=False))

    def _harm(self, edits: Sequence[Edit]) -> Harm:
        """How large the updates are, and what they do to text that has nothing to do with them."""
        norms = np.array([self.weights.update_norm(edit) for edit in edits])
        probe = self.probe
        if probe is None:
            return replace(Harm.unknown(len(edits)), update_norm=norms)
        head = partial(head_rows, self.lm)
        if self._text_loss is None:
            self._text_loss = halving(lambda allowed: probe.before(head(allowed)), self._memory(gradient=False))
        before = self._text_loss
        if self.path == "plain":
            return Harm(norms, before, np.array([probe.plain(edit) for edit in edits]))

        def work(allowed: int) -> np.ndarray:
            return probe.after(edits, before, rows_within(self.lm, allowed, 0, gradient=False), head(allowed))

        return Harm(norms, before, halving(work, self._memory(gradient=False)))


class _NotEdited(Exception):
    """A fact that the problem leaves out, with the reason."""


def _checked(edit: Edit, after: np.ndarray) -> Edit:
    """The edit, marked as failed where its probabilities are no numbers."""
    if edit.status == "ok" and not np.isfinite(after).all():
        return replace(edit, status="failed: a probability after the edit is not a number")
    return edit
