"""Whether an edit disables the model: the size of its update, and the loss of a text that has nothing to do with it.

A single edit of ROME can ruin a model for all text (Gupta et al. 2024, "Rebuilding ROME"; Yang et al. 2024, "The
Butterfly Effect of Model Editing", who see it by perplexity). Here the text is the model's own, so that its loss is
near the model's entropy before the edit and rises by whatever the edit breaks. The loss is the mean negative
log-likelihood in nats a token, over every token of each sequence but its first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.edit.protocol import Dense, Edit, LowRank
from pipeline.lm.model import LanguageModel
from pipeline.measure.likelihood import Likelihood


@dataclass(frozen=True)
class Harm:
    """What E edits of one fact do to the model. update_norm: (E,) |Delta W| over |W|. text_loss_pre, text_loss_post:
    (E,), nats a token. NaN where there is no edit or nothing was measured.
    """

    update_norm: np.ndarray
    text_loss_pre: float
    text_loss_post: np.ndarray

    @classmethod
    def unknown(cls, edits: int) -> Harm:
        """Of edits that were not made."""
        return cls(np.full(edits, np.nan), float("nan"), np.full(edits, np.nan))


class ProbeText(Likelihood):
    """A fixed text, and what edits make of its loss. sequences: token ids of its pieces; at least one has two."""

    def __init__(self, lm: LanguageModel, sequences: Sequence[Sequence[int]]):
        super().__init__(lm, [ids for ids in sequences if len(ids) > 1])

    def reduce(self, losses: Tensor) -> Tensor:
        """The loss (R,): the mean of the tokens' losses (R, n)."""
        return losses.mean(1)


class Weights:
    """Norms of the unedited down-projections, each taken once."""

    def __init__(self, lm: LanguageModel):
        self.lm = lm
        self._squares: dict[int, float] = {}

    def square(self, layer: int) -> float:
        """Squared Frobenius norm of block `layer`'s down-projection."""
        if layer not in self._squares:
            self._squares[layer] = _square(self.lm.arch.down_projs[layer].weight.detach())
        return self._squares[layer]

    def update_norm(self, edit: Edit) -> float:
        """|Delta W| over |W|, Frobenius norms over the blocks that the edit has updates of, together.

        0 for an edit without updates, NaN for one that failed.
        """
        if edit.status != "ok":
            return float("nan")
        layers = sorted({update.layer for update in edit.updates})
        changed = sum(changed_square([u for u in edit.updates if u.layer == layer]) for layer in layers)
        whole = sum(self.square(layer) for layer in layers)
        return float(np.sqrt(changed / whole)) if layers else 0.0


def changed_square(updates: Sequence[LowRank | Dense]) -> float:
    """Squared Frobenius norm of the sum of a block's updates, of which low-rank ones are not multiplied out.

    With the low-rank ones side by side as L (d, r) and R (d_ff, r), and D the sum of the dense ones, |D + L RT|^2 is
    |D|^2 + 2 <L, D R> + trace((LT L)(RT R)).
    """
    low = [update for update in updates if isinstance(update, LowRank)]
    dense = [update.change for update in updates if isinstance(update, Dense)]
    total = 0.0
    if dense:
        whole = dense[0] if len(dense) == 1 else torch.stack(dense).sum(0)
        total += _square(whole)
    if low:
        left = torch.cat([update.left.double() for update in low], 1)
        right = torch.cat([update.right.double() for update in low], 1)
        total += float(((left.T @ left) * (right.T @ right)).sum())
        if dense:
            total += 2 * float((left * (whole @ right.to(whole)).double()).sum())
    return max(total, 0.0)


def _square(matrix: Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
