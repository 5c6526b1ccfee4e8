"""A model under edits: what it gives for a recorded text without a weight touched, and the edit in the weights.

No update is multiplied out: all edits climb through one resumed forward (pipeline.edit.climbing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.edit.climbing import climbed
from pipeline.edit.protocol import Edit, LowRank
from pipeline.lm.forward import Recording, Suffix
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
        with torch.no_grad():
            hidden = climbed(lm, suffix, [edits[e].updates for e in chosen])
        yield chosen, hidden


@contextmanager
def applied(lm: LanguageModel, edit: Edit | None) -> Iterator[None]:
    """Within: the edit is in the model's weights. Afterwards they are what they were, bit for bit."""
    updates = () if edit is None else edit.updates
    with lm.arch.kept({update.layer for update in updates}):
        for update in updates:
            lm.arch.add_to_weight(update.layer, update.matrix())
        yield
