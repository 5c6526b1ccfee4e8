"""The units of edits in sequence: runs of a few edits, each on top of those of the run before.

The next run of a batch can be computed only when the last is stored, so each round of runs is a job of its own; a
sequence of any length that is interrupted loses one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.compute.editors import editor
from pipeline.compute.keys import common, key
from pipeline.compute.machine import loaded
from pipeline.compute.work import Unit
from pipeline.edit import problems
from pipeline.edit.protocol import Edit, Editor, EditRequest, LowRank, Method, Update
from pipeline.edit.sequence import in_sequence
from pipeline.facts.fact import Fact
from pipeline.lm.memory import budget
from pipeline.tables import ERROR_INJECTION, to_arrow

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

RUN = 25  # edits of a unit


@dataclass(frozen=True)
class Setting:
    """What all batches of a method share. layer: that all of its edits stand for. statistics: the manifest of the
    second moments; prefixes: the context prefixes; folder: where the second moments are.
    """

    params: Params
    model: dict[str, Any]
    method: Method
    layer: int
    statistics: dict[str, Any]
    prefixes: tuple[str, ...]
    folder: Path

    def depends(self, *modules: str) -> dict[str, Any]:
        """What every edit of the method depends on that `modules` compute with it."""
        params = self.params
        return common(params, self.model, self.method.module, *modules) | {
            "method": self.method.name,
            "settings": params.for_problem(self.method.name, ERROR_INJECTION),
            "layer": self.layer,
            "statistics": self.statistics["source_key"],
            "prefixes": self.prefixes,
            "ridge": params.statistics.ridge,
        }

    def editor(self, lm: LanguageModel) -> Editor:
        return editor(lm, self.params, self.model, self.method, ERROR_INJECTION, self.folder)

    def request(self, lm: LanguageModel, fact: Fact) -> EditRequest:
        """To say target_false of the fact."""
        of = problems.PROBLEMS[ERROR_INJECTION], fact, fact.target_false, self.prefixes, None, fact.target_true
        return problems.edit_request(lm, *of)

    def memory(self, lm: LanguageModel) -> int:
        """Bytes that a batch of an edit may take."""
        return budget(self.params.compute.memory_bytes, lm.device, gradient=True)


@dataclass(frozen=True)
class Run:
    """Some facts to edit after those of `before`, the tables of the earlier runs; after: the key of the last."""

    label: str
    facts: tuple[Fact, ...]
    before: tuple[pa.Table, ...]
    after: str


@dataclass(frozen=True)
class SequenceJob:
    """One round of runs, of different batches."""

    params: Params
    setting: Setting
    runs: tuple[Run, ...]
    noun = "runs of edits"

    @property
    def step(self) -> str:
        return f"sequence-{self.setting.method.name}"

    def units(self) -> Sequence[Unit]:
        depends = self.setting.depends(__name__)
        return [
            Unit(key(**depends, step=self.step, after=run.after, facts=[asdict(f) for f in run.facts]), run.label, run)
            for run in self.runs
        ]

    def worker(self) -> Callable[[Unit], pa.Table]:
        setting = self.setting
        lm = loaded(self.params, setting.model)
        editor, memory = setting.editor(lm), setting.memory(lm)

        def compute(unit: Unit) -> pa.Table:
            run: Run = unit.item
            before = [update for table in run.before for update in updates(table)]
            requests = [setting.request(lm, fact) for fact in run.facts]
            return to_arrow(_frame(run, in_sequence(lm, editor, requests, setting.layer, memory, before)))

        return compute


def _frame(run: Run, edits: Sequence[Edit]) -> pd.DataFrame:
    """A row an update, and one of block -1 for an edit that has none; sides as the bytes of float64 numbers."""
    rows = []
    for fact, edit in zip(run.facts, edits, strict=True):
        told = {"fact_id": fact.fact_id, "status": edit.status}
        for update in edit.updates:
            assert isinstance(update, LowRank), "methods in sequence make low-rank updates"
            sides = {"left": _bytes(update.left), "right": _bytes(update.right)}
            rows.append(told | {"block": update.layer, "rank": update.left.shape[1], **sides})
        if not edit.updates:
            rows.append(told | {"block": -1, "rank": 0, "left": b"", "right": b""})
    return pd.DataFrame(rows)


def _bytes(side: Tensor) -> bytes:
    return np.ascontiguousarray(side.cpu().double().numpy()).tobytes()


def updates(table: pa.Table) -> list[Update]:
    """The updates of a run's table, in their order."""
    found: list[Update] = []
    for row in table.to_pylist():
        if row["block"] >= 0:
            left, right = (
                torch.from_numpy(np.frombuffer(row[side], dtype=np.float64).reshape(-1, row["rank"]).copy())
                for side in ("left", "right")
            )
            found.append(LowRank(row["block"], left, right))
    return found
