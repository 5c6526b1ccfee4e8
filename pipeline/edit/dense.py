"""The resumed forward of one prompt through dense changes of down-projections: the edits of all layers in one batch.

W itself is never touched (pipeline.edit.climbing), and gradients are taken for the changes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipeline.edit.climbing import climbed
from pipeline.edit.protocol import Dense, EditRequest
from pipeline.lm.forward import Recording, Suffix, log_probabilities, record
from pipeline.lm.memory import row_bytes
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import no_noise
from pipeline.lm.prompts import Prompt, pack

Changes = Mapping[int, Tensor]  # block -> D (d, d_ff)


def copies(request: EditRequest, count: int) -> tuple[tuple[Prompt, ...], list[list[int]]]:
    """The bare prompt, `count` times where its subject is noised, and the noise rows of their tokens.

    Each copy is a prompt of its own to `FreshNoise`, so that each has its own draws.
    """
    if request.noise is None:
        return request.prompts[:1], no_noise(request.prompts[:1])
    prompts = request.prompts[:1] * count
    return prompts, request.noise.rows(prompts)


class DenseClimb:
    """One recording of a request's copies, and the suffix that their optimisation runs again and again.

    The recording and the suffix are of the step that `draw` was last called for.
    """

    recording: Recording
    suffix: Suffix

    def __init__(self, lm: LanguageModel, request: EditRequest, count: int):
        self.lm, self.request = lm, request
        self.prompts, rows = copies(request, count)
        self.packed = pack([prompt.ids[:-1] for prompt in self.prompts], [row[:-1] for row in rows])
        reads = [self.packed.where[p][j] for p, prompt in enumerate(self.prompts) for j in prompt.reads]
        self.reads = torch.tensor(reads, device=lm.device)
        self.targets = torch.tensor([i for prompt in self.prompts for i in prompt.target_ids], device=lm.device)
        self._drawn: int | None = None
        self.draw(0)

    def draw(self, step: int) -> None:
        """Record the copies under the noise of `step`; without noise one recording serves all steps."""
        noise = self.request.noise
        if self._drawn is not None and (self._drawn == step or noise is None):
            return
        table = None if noise is None else noise.table(self.prompts, step)[None]
        self.recording = record(self.lm, self.packed, noise=table)
        self.suffix, self._drawn = Suffix.after(self.recording, range(len(self.packed))), step

    def edits_within(self, memory: int, window: int) -> int:
        """How many edits of `window` blocks fit into `memory` bytes at once, at least one: their activations, and the
        change, its gradient and Adam's two means for each block.
        """
        arch = self.lm.arch
        item = max(4, torch.empty((), dtype=self.lm.dtype).element_size())
        each = row_bytes(self.lm, self.suffix, len(self.reads), gradient=True)
        return max(1, memory // (each + 4 * window * arch.width * arch.key_size(0) * item))

    def log_probabilities(self, edits: Sequence[Changes]) -> Tensor:
        """Log-probability of each target token in each copy, (E, copies, tokens), under each of `edits`.

        edits: each changes at least one block; in ascending order of the lowest.
        """
        updates = [[Dense(layer, change) for layer, change in changes.items()] for changes in edits]
        hidden = climbed(self.lm, self.suffix, updates)
        logs = log_probabilities(self.lm, hidden[:, self.reads], self.targets.expand(len(edits), -1))
        return logs.reshape(len(edits), len(self.prompts), -1)
