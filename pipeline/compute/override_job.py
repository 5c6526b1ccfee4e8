"""The units of the override stage: what the edited model's traces look like, and what is left of an edit when the MLP
outputs of the traced block are replaced.

The question is from Hase et al. 2023's discussion of their results: an edit at one block may override what sits at
another. A unit is one fact, method and problem. Its old site is the layer with the largest tracing effect of the true
object in the unedited model, MLP outputs restored at the subject's last token; it is named under the noise of stage
`trace`. Everything else is measured under another stream's draws, so that a peak at the old site is no echo of the
draws that named it. Edits are those of the edit stage, put into the weights for as long as they are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from pipeline.errors import UserError
from pipeline.facts import known
from pipeline.facts.fact import Fact
from pipeline.lm.forward import Suffix
from pipeline.lm.memory import budget, halving, rows_within
from pipeline.lm.model import window_range
from pipeline.lm.noise import NoiseTable, Stream
from pipeline.lm.prompts import Prompt
from pipeline.locate.last_subject import LastSubjectTrace
from pipeline.locate.replaced import SubjectMlps
from pipeline.locate.tracing import Trace
from pipeline.measure.edited import applied
from pipeline.tables import NO_LAYER, UNEDITED, to_arrow

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

OBJECTS = ("new", "true")
REPLACED = {  # column: whether the outputs put in are the unedited model's, whether at all of the subject's tokens
    "p_unedited": (True, False), "p_unedited_subject": (True, True),
    "p_zeroed": (False, False), "p_zeroed_subject": (False, True),
}  # fmt: skip
MEASURED = ("p_pre", "p_post", "p_corrupt", "p_restored", *REPLACED)


@dataclass(frozen=True)
class OverrideJob(AgainJob):
    """Traces of edited models and replaced MLP outputs in them; a unit is one fact, method and problem.

    edits: at the layers of section `override`. own: the layers at which a fact may be edited because its trace names
    them.
    """

    own: tuple[int, ...]
    step = "override"

    @classmethod
    def of_run(
        cls, params: Params, model: dict[str, Any], facts: tuple[Fact, ...], sd: float, methods: Mapping[str, Method],
        made: tuple[dict[str, Any], tuple[str, ...]], folder: Path,
    ) -> OverrideJob:  # fmt: skip
        """Edits of the run's first facts or all; made: the statistics in `folder`.

        Raises UserError where section `override` asks for what the run does not edit: its second moments are missing.
        """
        settings, own = params.override, params.edit.layer_list(model["layers"])
        for name, asked, there in (
            ("layers", settings.layers, own),
            ("methods", settings.methods, params.edit.methods),
            ("problems", settings.problems, params.edit.problems),
        ):
            if left := [str(one) for one in asked if one not in there]:
                raise UserError(
                    f"params.yaml: override.{name} holds {left[0]} but must be among edit.{name}, which holds "
                    + ", ".join(map(str, there))
                )
        chosen, at_layers = facts[: settings.count], params.with_layers(settings.layers)
        by = [methods[method] for method in settings.methods]
        jobs = edit_jobs(at_layers, model, chosen, sd, by, settings.problems, made, folder)
        return cls(at_layers, jobs, tuple(own))

    def units(self) -> Sequence[Unit]:
        params, sd = self.params, self.edits[0].sd
        noise = {"seed": params.seed, "sd": sd, "samples": params.noise.samples}
        return self._units(self.step, __name__, **noise, window=params.override.window, own=self.own)

    def worker(self) -> Callable[[Unit], pa.Table]:
        lm = loaded(self.params, self.model)

        def compute(unit: Unit) -> pa.Table:
            place, fact = unit.item
            return to_arrow(_Override(self.edits[place], self.own, lm, fact).frame())

        return compute


class _Override:
    """One fact and one job of edits: how the model is traced and its outputs are replaced, before and after each."""

    def __init__(self, job: EditJob, own: Sequence[int], lm: LanguageModel, fact: Fact):
        self.job, self.own, self.lm, self.fact = job, own, lm, fact
        self.params, self.window = job.params, job.params.override.window
        self.memory = budget(self.params.compute.memory_bytes, lm.device, gradient=False)

    def frame(self) -> pd.DataFrame:
        """data/override's rows of the fact: the unedited model's, then each edit's, objects and layers innermost."""
        true = known.fact_prompt(self.lm, self.fact)
        old = int(self._trace(true, "trace").effect[0].argmax())
        layers = {*self.job.layers, *([old] if old in self.own else [])}
        edited, edits = EditWorker(replace(self.job, params=self.params.with_layers(layers)), self.lm).edited(self.fact)
        prompts = {"true": true}
        if any(edit.status == "ok" for edit in edits):
            prompts = {"new": known.fact_prompt(self.lm, self.fact, edited["target"].iloc[0]), "true": true}
        before = SubjectMlps(self.lm, list(prompts.values()))
        states = [self._state(None, before, before, prompts)]
        for edit in edits:
            if edit.status != "ok":
                states.append((edit, {}))
                continue
            with applied(self.lm, edit):
                states.append(self._state(edit, before, SubjectMlps(self.lm, list(prompts.values())), prompts))
        return pd.concat(self._frames(states, old), ignore_index=True)

    def _state(
        self, edit: Edit | None, before: SubjectMlps, now: SubjectMlps, prompts: Mapping[str, Prompt]
    ) -> tuple[Edit | None, dict[str, dict[str, Any]]]:
        """The measures of the model as it is now, by object: numbers, and (L,) for those that are by layer."""
        put: dict[str, np.ndarray] = {}
        for column, (unedited, whole_subject) in REPLACED.items():
            if edit is None and unedited:
                continue  # it is what it was
            put[column] = self._replaced(now, before if unedited else None, whole_subject=whole_subject)
        found: dict[str, dict[str, Any]] = {}
        for i, (name, prompt) in enumerate(prompts.items()):
            trace = self._trace(prompt, "score")
            found[name] = {"p_pre": before.p[i], "p_post": now.p[i], "p_corrupt": trace.p_corrupt}
            found[name] |= {"p_restored": trace.restored[0]} | {column: values[i] for column, values in put.items()}
        return edit, found

    def _trace(self, prompt: Prompt, stream: Stream) -> Trace:
        """The trace of the model as it is now, of MLP outputs at the subject's last token; `restored` (1, L)."""
        samples, lm = self.params.noise.samples, self.lm
        noise = NoiseTable(self.params.seed, self.fact.fact_id, self.job.sd, samples, lm.embedding_width, stream)
        traced = LastSubjectTrace(lm, prompt, noise, samples)
        if not lm.fast:
            return traced.plain("mlp", self.window)

        def work(allowed: int) -> Trace:
            return traced.fast("mlp", self.window, rows_within(lm, allowed, len(prompt.reads), gradient=False))

        return halving(work, self.memory)

    def _replaced(self, now: SubjectMlps, source: SubjectMlps | None, *, whole_subject: bool) -> np.ndarray:
        reads = sum(len(prompt.reads) for prompt in now.prompts)

        def work(allowed: int) -> np.ndarray:
            def rows(suffix: Suffix) -> int:
                return rows_within(self.lm, allowed, reads, gradient=False)(suffix)

            return now.replaced(self.window, source, whole_subject=whole_subject, rows=rows)

        return halving(work, self.memory)

    def _frames(
        self, states: Sequence[tuple[Edit | None, dict[str, dict[str, Any]]]], old: int
    ) -> Iterator[pd.DataFrame]:
        count = self.lm.n_layers
        windows = [window_range(layer, self.window, count) for layer in range(count)]
        for edit, measured in states:
            blocks = [update.layer for update in edit.updates] if edit and edit.updates else []
            centre = NO_LAYER if edit is None else edit.layer
            for name in OBJECTS:
                yield pd.DataFrame(
                    {
                        "fact_id": self.fact.fact_id,
                        "method": self.job.method.name,
                        "problem": self.job.problem,
                        "old_layer": old,
                        "edited_layer": centre,
                        "edit_first": min(blocks, default=centre),
                        "edit_last": max(blocks, default=centre),
                        "status": UNEDITED if edit is None else edit.status,
                        "object": name,
                        "layer": range(count),
                        "window_first": [span.start for span in windows],
                        "window_last": [span.stop - 1 for span in windows],
                    }
                    | {column: measured.get(name, {}).get(column, np.nan) for column in MEASURED}
                )
