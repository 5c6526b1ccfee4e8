"""The resumed forward of a recorded text through changed down-projections: many edits in one batch, no weight touched.

An update of W adds what it makes of the key to the MLP's output, which at an edit's lowest block is known from the
recording. Nothing below changes: only the blocks above are run, each edit joins the climb above its lowest block
("staircase"), and its further updates are added where the climb reaches their blocks. A changed W changes every token,
so all tokens are live. Scoring goes this way, and with a gradient fine-tuning does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pipeline.edit.protocol import Update
from pipeline.lm.forward import Suffix, climb
from pipeline.lm.model import LanguageModel


def climbed(lm: LanguageModel, suffix: Suffix, edits: Sequence[Sequence[Update]]) -> Tensor:
    """Last-block outputs (E, S, d) of the suffix's tokens under each edit.

    edits: the updates of each, at least one, in ascending order of the edits' lowest block. Gradients are kept for
    updates that ask for them, unless the caller forbids it.
    """
    recording, arch, tokens = suffix.recording, lm.arch, len(suffix.origin)
    lowest = [min(update.layer for update in updates) for updates in edits]

    def joined(updates: Sequence[Update], layer: int) -> Tensor:
        keys, output = recording.mlp_in[layer][0], recording.mlp_out[layer][0]
        change: Any = sum(update.output(keys) for update in updates if update.layer == layer)
        return recording.h[layer + 1] + arch.mlp_change(layer, output, change)

    def join(at: int) -> tuple[Tensor, None] | None:
        new = [joined(updates, at - 1) for low, updates in zip(lowest, edits, strict=True) if low == at - 1]
        return (torch.cat(new), None) if new else None

    def further(layer: int) -> Callable[..., Tensor]:
        """A hook on a down-projection; rows of the climb are the edits that have joined, in their order."""
        here = [(e, u) for e, updates in enumerate(edits) for u in updates if lowest[e] < u.layer == layer]

        def hook(_module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            keys, shaped = args[0].reshape(-1, tokens, args[0].shape[-1]), output.reshape(-1, tokens, arch.width)
            added = torch.stack([update.output(keys[row]) for row, update in here]).to(shaped)
            rows = torch.tensor([row for row, _ in here], device=shaped.device)
            return shaped.index_add(0, rows, added).reshape(output.shape)

        return hook

    layers = {
        update.layer for low, updates in zip(lowest, edits, strict=True) for update in updates if update.layer > low
    }
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(arch.down_projs[layer].register_forward_hook(further(layer)).remove)
        return climb(lm, suffix, lowest[0] + 1, join)
