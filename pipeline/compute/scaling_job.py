"""The units of the scaling stage: many facts edited at once, and what the edited model then says of them.

A method edits a batch in its own way: MEMIT by one system of equations (`edit_many`), fine-tuning by the batch's mean
loss (pipeline.edit.together), any other fact by fact (pipeline.compute.sequence_job, whose edits come with the unit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.compute.batches import Batch
from pipeline.compute.keys import common, key
from pipeline.compute.machine import loaded
from pipeline.compute.sequence_job import Setting, updates
from pipeline.compute.work import Unit
from pipeline.edit.finetune import FineTune
from pipeline.edit.memit import Memit
from pipeline.edit.protocol import Edit, Update, failed
from pipeline.edit.together import tuned_together
from pipeline.errors import UserError
from pipeline.facts.fact import Fact
from pipeline.lm.memory import halving
from pipeline.lm.model import window_range
from pipeline.measure.edited import applied
from pipeline.measure.generation import generation_entropy
from pipeline.measure.probabilities import Measurement, prompt_kinds, questions
from pipeline.measure.writing import written_as_is
from pipeline.tables import ERROR_INJECTION, NO_LAYER, UNEDITED, to_arrow

if TYPE_CHECKING:
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class Made:
    """A batch with the edits in sequence made of it, () for methods that edit it at once. after: their key."""

    batch: Batch
    runs: tuple[pa.Table, ...] = ()
    after: str = ""


@dataclass(frozen=True)
class ScalingJob:
    """Batches of one method; a unit is one batch. setting: None for the unedited model."""

    params: Params
    model: dict[str, Any]
    setting: Setting | None
    made: tuple[Made, ...]
    noun = "batches"

    @property
    def name(self) -> str:
        return UNEDITED if self.setting is None else self.setting.method.name

    @property
    def step(self) -> str:
        return f"scaling-{self.name}"

    def units(self) -> Sequence[Unit]:
        params, scaling = self.params, self.params.scaling
        setting = self.setting
        depends = common(params, self.model, __name__) if setting is None else setting.depends(__name__)
        if setting is not None and setting.method.editor is FineTune:
            depends |= {"batch": scaling.batch, "decay": scaling.decay}
        found = []
        for made in self.made:
            batch = made.batch
            of = [asdict(fact) for fact in batch.facts]
            written = sorted(batch.written & {fact.fact_id for fact in batch.facts})
            texts = [written, scaling.generate_tokens, params.seed] if written else []
            what = {"study": batch.study, "number": batch.number, "n_edits": batch.n_edits}
            unit = key(**depends, step=self.step, after=made.after, facts=of, texts=texts, **what)
            found.append(Unit(unit, f"{self.name} {batch.label}", made))
        return found

    def worker(self) -> Callable[[Unit], pa.Table]:
        worker = _Worker(self)
        return lambda unit: to_arrow(worker.frame(unit.item))


class _Worker:
    """Edits and scores one batch after the other with one model."""

    def __init__(self, job: ScalingJob):
        self.job, self.params, self.setting = job, job.params, job.setting
        self.lm = loaded(job.params, job.model)
        self.editor = None if self.setting is None else self.setting.editor(self.lm)

    def frame(self, made: Made) -> pd.DataFrame:
        """A row for each prompt of each fact of the batch."""
        edit, batch = self._edit(made), made.batch
        written = [fact for fact in batch.facts if fact.fact_id in batch.written and edit.status == "ok"]
        with applied(self.lm, edit):
            asked = self.params.scaling.generate_tokens, self.params.seed
            said = written_as_is(self.lm, written, *asked)
            texts = {fact.fact_id: text for fact, text in zip(written, said, strict=True)}
            rows = [row for fact in batch.facts for row in self._rows(fact, edit, texts.get(fact.fact_id, ""))]
        of = {"study": batch.study, "batch": batch.number, "method": self.job.name, "n_edits": batch.n_edits}
        return pd.DataFrame(rows).assign(**of, layer=edit.layer, problem=ERROR_INJECTION)

    def _edit(self, made: Made) -> Edit:
        setting, batch = self.setting, made.batch
        if setting is None:
            return Edit(NO_LAYER, (), 0.0, 0.0, 0)
        if made.runs:
            return Edit(setting.layer, tuple(u for table in made.runs for u in updates(table)), 0.0, 0.0, 0)
        requests = [setting.request(self.lm, fact) for fact in batch.facts]
        try:
            return halving(lambda memory: self._at_once(setting, requests, memory), setting.memory(self.lm))
        except UserError as error:
            return failed(setting.layer, f"failed: {error}")

    def _at_once(self, setting: Setting, requests: list[Any], memory: int) -> Edit:
        lm, editor, layer = self.lm, self.editor, setting.layer
        if isinstance(editor, FineTune):
            scaling = self.params.scaling
            power, log = scaling.decay or (0.0, -np.inf)
            decay = float(len(requests) ** power * np.exp(log))
            every = lm, requests, editor.settings, layer
            return tuned_together(*every, batch=scaling.batch, decay=decay, memory=memory)
        assert isinstance(editor, Memit)
        blocks = window_range(layer, editor.window, lm.n_layers)
        found: tuple[Update, ...] = editor.edit_many(lm, requests, blocks, memory)
        return Edit(layer, found, 0.0, 0.0, 0)

    def _rows(self, fact: Fact, edit: Edit, text: str) -> list[dict[str, Any]]:
        asked = questions(self.lm, fact, fact.target_false, fact.target_true, 0)
        answers = np.full((len(asked), 2), np.nan)
        status = edit.status
        if status == "ok":
            answers = Measurement(self.lm, asked, None).before()  # of the weights as they are, which hold the edit
            if not np.isfinite(answers).all():
                status = "failed: a probability after the edit is not a number"
        return [
            {
                "fact_id": fact.fact_id, "relation": fact.relation, "status": status, "prompt_kind": kind,
                "prompt_index": index, "p_post": p, "p_baseline_post": p_true,
                "text": text if kind == "rewrite" else "",
                "entropy": generation_entropy([text]) if text and kind == "rewrite" else np.nan,
            }
            for (kind, index), (p, p_true) in zip(prompt_kinds(fact), answers, strict=True)
        ]  # fmt: skip


def at_once(setting: Setting, lm_fast: bool) -> bool:
    """Whether the method edits a batch at once; UserError where it would and the model has no resumed forward."""
    many = setting.method.editor in (Memit, FineTune)
    if many and not lm_fast:
        raise UserError(
            f"params.yaml: scaling.methods holds {setting.method.name}, which edits many facts at once by the resumed "
            "forward only, and this model or compute.path has none; take it off the list, or set compute.path to fast"
        )
    return many
