"""The units of the text that second moments are taken over, where the model writes it: batches of pieces.

Each token is a small product of its own, so that workers of one thread each are as fast as one process with all
threads, and do not wait for each other where the machine has other work to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.compute.keys import common, key
from pipeline.compute.machine import set_up
from pipeline.compute.work import Unit
from pipeline.lm.generate import BATCH, sample_batch
from pipeline.seeds import derive

if TYPE_CHECKING:
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class TextJob:
    """Sampled pieces of text; a unit is one batch of them, seeded by its place."""

    params: Params
    model: dict[str, Any]
    step = "text"
    noun = "batches of text"

    def units(self) -> Sequence[Unit]:
        settings = self.params.statistics
        pieces = -(-settings.tokens // settings.sequence_length)
        depends = common(self.params, self.model, "pipeline.lm.generate", __name__)
        depends |= {"seed": self.params.seed, "length": settings.sequence_length, "temperature": settings.temperature}
        units = []
        for low in range(0, pieces, BATCH):
            count = min(BATCH, pieces - low)
            unit_key = key(**depends, step=self.step, low=low, count=count)
            units.append(Unit(unit_key, f"pieces {low} to {low + count - 1}", (low, count)))
        return units

    def worker(self) -> Callable[[Unit], pa.Table]:
        lm, params = set_up(self.params, self.model["source"]), self.params
        settings = params.statistics
        torch.set_num_threads(1)  # whatever there are workers, so that all round alike

        def compute(unit: Unit) -> pa.Table:
            low, count = unit.item
            seed = derive(params.seed, "text")
            ids = sample_batch(lm, low, count, settings.sequence_length, settings.temperature, seed)
            return pa.table({"token_id": pa.array(ids.flatten().tolist(), pa.int64())})

        return compute

    def read(self, table: pa.Table) -> list[Tensor]:
        """Batches of token ids (B, length), as `edit.text.text_batches` gives them."""
        ids = torch.tensor(table.column("token_id").to_pylist())
        return list(ids.reshape(-1, self.params.statistics.sequence_length).split(BATCH))
