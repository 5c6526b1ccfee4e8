"""A model under edits: what it gives for a recorded text without a weight touched, and the edit in the weights.

No update is multiplied out: for a recorded text all edits climb through one resumed forward (pipeline.edit.climbing),
and text that is yet to be written has a row of the batch for each edit, to whose MLP outputs the edit's are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

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


@contextmanager
def by_row(lm: LanguageModel, edits: Sequence[Edit]) -> Iterator[Callable[[Sequence[int]], None]]:
    """Within: each row of a batch that the model runs is under an edit of its own, and no weight is touched.

    Yields what has to be told before each run: which of `edits` each row of the batch is under.
    """
    rows: dict[int, list[int]] = {}  # of each edit that is in the batch
    told: list[int] = []

    def tell(of: Sequence[int]) -> None:
        if told != list(of):
            told[:] = of
            rows.clear()
            rows.update({e: [row for row, other in enumerate(of) if other == e] for e in set(of)})

    def adding(layer: int) -> Callable[..., Tensor]:
        """A hook on a down-projection; some families flatten batch and tokens before it."""
        here = [(e, update) for e, edit in enumerate(edits) for update in edit.updates if update.layer == layer]

        def hook(_module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
            keys, changed = (x.reshape(len(told), -1, x.shape[-1]) for x in (args[0], output.clone()))
            for e, update in here:
                if e in rows:
                    changed[rows[e]] += update.output(keys[rows[e]]).to(changed)
            return changed.reshape(output.shape)

        return hook

    with ExitStack() as stack:
        for layer in {update.layer for edit in edits for update in edit.updates}:
            stack.callback(lm.arch.down_projs[layer].register_forward_hook(adding(layer)).remove)
        yield tell
