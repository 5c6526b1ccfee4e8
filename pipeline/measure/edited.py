"""A model under edits: what it gives for a recorded text without a weight touched, and the edit in the weights.

An update of W adds what it makes of the key to the MLP's output, which at an edit's lowest block is known from the
recording. Only the blocks above are run, all edits climb in one batch ("staircase"), and an edit's further updates are
added where the climb reaches their blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from pipeline.edit.protocol import Edit, LowRank
from pipeline.lm.forward import Recording, Suffix, climb
from pipeline.lm.model import LanguageModel


def changes(edit: Edit) -> bool:
    """Whether the edit changes any weight; an edit that has no updates, or none but zeros, need not be run."""
    return any(bool((u.left if isinstance(u, LowRank) else u.change).any()) for u in edit.updates)


def outputs(
    lm: LanguageModel, recording: Recording, edits: Sequence[Edit], rows: Callable[[Suffix], int] | None
) -> Iterator[tuple[list[int], Tensor]]:
    """Last-block outputs (R, N, d) of the recorded tokens under each edit that changes anything, batch by batch.

    Beside each batch, which of `edits` its rows are. rows: how many edits a batch may hold, None for all at once.
    """
    order = sorted((e for e, edit in enumerate(edits) if changes(edit)), key=lambda e: edits[e].lowest)
    if not order:
        return
    suffix = Suffix.after(recording, range(len(recording.packed)))
    size = rows(suffix) if rows else len(order)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        yield chosen, _climbed(lm, suffix, [edits[e] for e in chosen])


@torch.no_grad()
def _climbed(lm: LanguageModel, suffix: Suffix, edits: Sequence[Edit]) -> Tensor:
    """`outputs` of one batch, edits in ascending order of their lowest block: each joins the climb above that block,
    and its further updates are added where the climb reaches them.
    """
    recording, arch, tokens = suffix.recording, lm.arch, len(suffix.origin)

    def joined(edit: Edit) -> Tensor:
        layer = edit.lowest
        keys, output = recording.mlp_in[layer][0], recording.mlp_out[layer][0]
        change: Any = sum(update.output(keys) for update in edit.updates if update.layer == layer)
        return recording.h[layer + 1] + arch.mlp_change(layer, output, change)

    def join(at: int) -> tuple[Tensor, None] | None:
        new = [joined(edit) for edit in edits if edit.lowest == at - 1]
        return (torch.cat(new), None) if new else None

    def further(layer: int) -> Callable[..., Tensor]:
        """A hook on a down-projection; rows of the climb are the edits that have joined, in their order."""
        updates = [(e, u) for e, edit in enumerate(edits) for u in edit.updates if edit.lowest < u.layer == layer]

        def hook(_module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            keys, shaped = args[0].reshape(-1, tokens, args[0].shape[-1]), output.reshape(-1, tokens, arch.width)
            for row, update in updates:
                shaped = shaped.index_add(
                    0, torch.tensor([row], device=shaped.device), update.output(keys[row])[None].to(shaped)
                )
            return shaped.reshape(output.shape)

        return hook

    layers = {u.layer for edit in edits for u in edit.updates if u.layer > edit.lowest}
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(arch.down_projs[layer].register_forward_hook(further(layer)).remove)
        return climb(lm, suffix, edits[0].lowest + 1, join)


@contextmanager
def applied(lm: LanguageModel, edit: Edit | None) -> Iterator[None]:
    """Within: the edit is in the model's weights. Afterwards they are what they were, bit for bit."""
    updates = () if edit is None else edit.updates
    saved = {u.layer: lm.arch.down_projs[u.layer].weight.detach().clone() for u in updates}
    try:
        for update in updates:
            lm.arch.add_to_weight(update.layer, update.matrix())
        yield
    finally:
        for layer, weight in saved.items():
            lm.arch.down_projs[layer].weight.data.copy_(weight)
