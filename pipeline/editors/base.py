"""What an editing method is: from a request and a list of layers to one edit a layer.

An edit is a set of rank-one updates of down-projections. Whoever scores an edit may put the updates into the weights
(plain) or add what they do to the MLP's output (fast); the method does not know which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.models import LanguageModel
from pipeline.noise import NoiseTable
from pipeline.prompts import Prompt


@dataclass(frozen=True)
class EditRequest:
    """What to make the model say, for one fact and one problem.

    prompts: the context prefixes followed by the prompt and the target, the bare prompt first. essence: "{subject}
    is a", whose next-token distribution at the subject's last token should not move. noise: where the problem
    noises the subject (fact forcing), prompt i gets draw i. minimise: the target's probability is to fall (fact
    erasure).
    """

    fact_id: str
    prompts: tuple[Prompt, ...]
    essence: Prompt
    noise: NoiseTable | None
    minimise: bool


@dataclass(frozen=True)
class RankOne:
    """W of block `layer` becomes W + left rightT; left (d,), right (d_ff,), float32 or float64."""

    layer: int
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Edit:
    """One edit. layer: the (centre) layer it stands for. status: "ok", or why there is no update.

    delta_norm: length of v* - v0 before the update. loss: the last loss that was computed. steps: optimisation
    steps taken. acts: False where nothing that the method does at this layer can reach the answer.
    """

    layer: int
    updates: tuple[RankOne, ...]
    delta_norm: float
    loss: float
    steps: int
    status: str = "ok"
    acts: bool = True


class Editor(Protocol):
    """An editing method with its settings and statistics; its edits of several layers do not depend on each other."""

    window: int

    def edit(self, lm: LanguageModel, request: EditRequest, layers: Sequence[int]) -> list[Edit]: ...


def failed(layer: int, reason: str) -> Edit:
    """An edit that could not be made."""
    return Edit(layer, (), float("nan"), float("nan"), 0, reason)


def usable(tensor: Tensor) -> bool:
    """Whether every entry is finite."""
    return bool(torch.isfinite(tensor).all())
