"""The units of the table stage: the probabilities that CounterFact's measures are of, and what the edited model writes.

A unit is one fact under all methods, each at its layers, and under no edit, so that all of them write in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.compute.edit_job import EditJob, EditWorker
from pipeline.compute.keys import common, key
from pipeline.compute.machine import loaded
from pipeline.compute.work import Unit
from pipeline.edit import problems
from pipeline.edit.protocol import Edit
from pipeline.facts.fact import Fact
from pipeline.measure.collapse import Harm
from pipeline.measure.probabilities import Measurement, edit_frame, questions
from pipeline.measure.writing import prompts_about, written
from pipeline.tables import ERROR_INJECTION, NO_LAYER, UNEDITED, to_arrow

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

WRITTEN = "writing"  # the prompt_kind of rows that hold a text in place of probabilities


@dataclass(frozen=True)
class TableJob:
    """Error injection by several methods, each at a few layers. edits: jobs whose facts are `facts`."""

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    edits: tuple[EditJob, ...]
    step = "table"
    noun = "facts"

    def units(self) -> Sequence[Unit]:
        settings = self.params.table
        depends = common(self.params, self.model, __name__)
        depends |= {"tokens": settings.generate_tokens, "prompts": settings.generate_prompts, "seed": self.params.seed}
        edits = [[unit.key for unit in job.units()] for job in self.edits]
        return [
            Unit(
                key(**depends, step=self.step, fact=asdict(fact), edits=[keys[i] for keys in edits]),
                fact.fact_id,
                fact,
            )
            for i, fact in enumerate(self.facts)
        ]

    def worker(self) -> Callable[[Unit], pa.Table]:
        lm = loaded(self.params, self.model)
        editors = [EditWorker(job, lm) for job in self.edits]
        return lambda unit: to_arrow(self._frame(lm, editors, unit.item))

    def _frame(self, lm: LanguageModel, editors: Sequence[EditWorker], fact: Fact) -> pd.DataFrame:
        """data/edits' rows of one fact, and below them those of its texts; columns `prompt` and `text` beside."""
        frames = [unedited(lm, fact)]
        edits = [Edit(NO_LAYER, (), 0.0, 0.0, 0)]
        for editor in editors:
            frame, made = editor.edited(fact)
            frames.append(frame if editor.editor.window else frame.assign(layer=NO_LAYER))  # one edit of all layers
            edits += made
        prompts = prompts_about(fact, self.params.table.generate_prompts)
        sound = [e for e, edit in enumerate(edits) if edit.status == "ok"]
        how = prompts, self.params.table.generate_tokens, self.params.seed
        texts = dict(zip(sound, written(lm, fact, [edits[e] for e in sound], *how), strict=True))
        # Each frame has its edits in order, and as many rows for one as for another.
        rows = pd.concat([frame[frame["prompt_kind"] == "rewrite"] for frame in frames], ignore_index=True)
        said = [
            row | {"prompt_kind": WRITTEN, "prompt_index": i, "prompt": prompt, "text": text}
            | dict.fromkeys(("p_pre", "p_post", "p_baseline_pre", "p_baseline_post"), np.nan)
            for e, row in enumerate(rows.to_dict("records"))
            for i, (prompt, text) in enumerate(zip(prompts, texts.get(e, ()), strict=False))
        ]  # fmt: skip
        measured = [frame.assign(prompt="", text="") for frame in frames]
        return pd.concat([*measured, pd.DataFrame(said, columns=measured[0].columns)], ignore_index=True)


def unedited(lm: LanguageModel, fact: Fact) -> pd.DataFrame:
    """data/edits' rows of a fact whose model is as it was: p_post is p_pre."""
    target, baseline = problems.objects(problems.PROBLEMS[ERROR_INJECTION], fact, None)
    before = Measurement(lm, questions(lm, fact, target, baseline, 0), None).before()
    edit = Edit(NO_LAYER, (), 0.0, 0.0, 0)
    harm = Harm(np.zeros(1), float("nan"), np.full(1, np.nan))
    frame = edit_frame(fact, ERROR_INJECTION, UNEDITED, 0, target, baseline, before, [edit], before[None], harm)
    return frame.assign(update_key="")
