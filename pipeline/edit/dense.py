"""The resumed forward of one prompt through dense changes of down-projections: the edits of all layers in one batch.

A changed matrix W + D changes every token, so all tokens of the prompt are live; still, nothing below an edit's lowest
block changes. At that block the keys are those of the recording, and the edit joins the climb with D k added to the
MLP's output; where the climb reaches another of its blocks, D k is added there. W itself is never touched, and
gradients are taken for the changes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from pipeline.edit.protocol import EditRequest
from pipeline.lm.forward import Recording, Suffix, climb, log_probabilities, record
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
        lm, suffix, recording = self.lm, self.suffix, self.recording
        lowest = [min(changes) for changes in edits]

        def joined(changes: Changes, layer: int) -> Tensor:
            keys, output = recording.mlp_in[layer][0], recording.mlp_out[layer][0]
            return recording.h[layer + 1] + lm.arch.mlp_change(layer, output, _output(changes[layer], keys))

        def join(at: int) -> tuple[Tensor, None] | None:
            new = [joined(changes, at - 1) for low, changes in zip(lowest, edits, strict=True) if low == at - 1]
            return (torch.cat(new), None) if new else None

        def further(layer: int) -> Callable[..., Tensor]:
            """A hook on a down-projection; rows of the climb are the edits that have joined, in their order."""
            rows = [e for e, changes in enumerate(edits) if lowest[e] < layer and layer in changes]

            def hook(_module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
                keys = args[0].reshape(-1, len(suffix.origin), args[0].shape[-1])
                added = torch.stack([_output(edits[e][layer], keys[e]) for e in rows]).to(output)
                shaped = output.reshape(len(keys), len(suffix.origin), -1)
                return shaped.index_add(0, torch.tensor(rows, device=output.device), added).reshape(output.shape)

            return hook

        later = {layer for low, changes in zip(lowest, edits, strict=True) for layer in changes if layer > low}
        with ExitStack() as stack:
            for layer in later:
                stack.callback(lm.arch.down_projs[layer].register_forward_hook(further(layer)).remove)
            hidden = climb(lm, suffix, lowest[0] + 1, join)
        logs = log_probabilities(lm, hidden[:, self.reads], self.targets.expand(len(edits), -1))
        return logs.reshape(len(edits), len(self.prompts), -1)


def _output(change: Tensor, keys: Tensor) -> Tensor:
    """What the change adds to the MLP's output for `keys` (S, d_ff): (S, d), in the keys' number format."""
    return keys @ change.to(keys).T
