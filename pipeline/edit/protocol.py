"""What an editing method is: from a request and a list of layers to one edit a layer.

An edit is any number of updates, each a low-rank or a dense change of one block's down-projection. Whoever scores an
edit may put the updates into the weights (plain) or add what they do to the MLP's output (fast); the method does not
know which. A method is one file of this folder, which ends in its `Method`, and one entry of pipeline/edit/methods.py;
its section of params.yaml, DVC's stages, the keys of its results, the tables and the report follow from these. Editors
that are trained beforehand (KE, MEND) would be files here too, their weights one more of the `Resources`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import FreshNoise
from pipeline.lm.prompts import Prompt


@dataclass(frozen=True)
class EditRequest:
    """What to make the model say, for one fact and one problem.

    prompts: the context prefixes followed by the prompt and the target, the bare prompt first. essence: "{subject}
    is a", whose next-token distribution at the subject's last token should not move. noise: where the problem
    noises the subject (fact forcing), the noise of the prompts, new at each step; the essence prompt gets none.
    minimise: the target's probability is to fall (fact erasure). problem: the name of one of pipeline.edit.problems.
    baselines: `prompts` followed by the object that the target is compared with (error injection: the true one), for
    methods that need both; may be empty.
    """

    fact_id: str
    prompts: tuple[Prompt, ...]
    essence: Prompt
    noise: FreshNoise | None
    minimise: bool
    problem: str = ""
    baselines: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class LowRank:
    """W of block `layer` becomes W + left rightT; left (d, r), right (d_ff, r), float32 or float64."""

    layer: int
    left: Tensor
    right: Tensor

    def output(self, keys: Tensor) -> Tensor:
        """What the update adds to the MLP's output for `keys` (..., d_ff): (..., d), in the keys' number format."""
        left, right = self.left.to(keys), self.right.to(keys)
        if left.shape[1] == 1:
            return (keys @ right[:, 0])[..., None] * left[:, 0]
        return keys @ right @ left.T

    def matrix(self) -> Tensor:
        """The change of W, (d, d_ff)."""
        return self.left @ self.right.T


@dataclass(frozen=True)
class Dense:
    """W of block `layer` becomes W + change; change (d, d_ff), float32 or float64."""

    layer: int
    change: Tensor

    def output(self, keys: Tensor) -> Tensor:
        """What the update adds to the MLP's output for `keys` (..., d_ff): (..., d), in the keys' number format."""
        return keys @ self.change.to(keys).T

    def matrix(self) -> Tensor:
        """The change of W, (d, d_ff)."""
        return self.change


Update = LowRank | Dense


@dataclass(frozen=True)
class Edit:
    """One edit. layer: the (centre) layer it stands for. status: "ok", or why there is no update.

    delta_norm: length of v* - v0 before the update; of the change itself where no value is optimised. loss: the last
    loss that was computed. steps: optimisation steps taken. acts: False where nothing that the method does at this
    layer can reach the answer. denominator: the cosine uT k / (|u| |k|) of ROME's update, nan for methods without one;
    near 0 the update is huge.
    """

    layer: int
    updates: tuple[Update, ...]
    delta_norm: float
    loss: float
    steps: int
    status: str = "ok"
    acts: bool = True
    denominator: float = float("nan")

    @property
    def lowest(self) -> int:
        """The lowest block that the edit changes; the layer it stands for where it changes none."""
        return min((update.layer for update in self.updates), default=self.layer)


@dataclass(frozen=True)
class Resources:
    """What an editor may draw on besides the model.

    moment: gives the second moment E[k kT] of a block's keys, (d_ff, d_ff) on the model's device; raises UserError
    where there is none. ridge: added to its diagonal, as a share of its mean. path: fast or plain.
    """

    moment: Callable[[int], Tensor]
    ridge: float = 0.0
    path: str = "fast"


class Editor(Protocol):
    """A method with its settings and resources; its edits of several layers do not depend on each other.

    window: how many blocks one edit changes, as `lm.model.window_range` has them.
    """

    @property
    def window(self) -> int: ...

    def edit(
        self, lm: LanguageModel, request: EditRequest, layers: Sequence[int], memory: int | None = None
    ) -> list[Edit]:
        """One edit for each of `layers`, in their order. memory: bytes that a batch may take, None for no bound."""
        ...


@dataclass(frozen=True, kw_only=True)
class Method:
    """An editing method as the rest of the project sees it.

    name: its name in params.yaml, tables and files. settings: a frozen dataclass; its fields, annotated with the types
    of pipeline.settings.fields, are the method's section of params.yaml. editor: makes an `Editor` of settings and
    resources. moments: whether it needs the second moments of the keys.
    """

    name: str
    settings: type
    editor: Callable[[Any, Resources], Editor]
    moments: bool

    @property
    def module(self) -> str:
        """The module that holds the method; with what it imports, it decides the method's results."""
        return self.editor.__module__


def failed(layer: int, reason: str) -> Edit:
    """An edit that could not be made."""
    return Edit(layer, (), float("nan"), float("nan"), 0, reason)


def usable(tensor: Tensor) -> bool:
    """Whether every entry is finite."""
    return bool(torch.isfinite(tensor).all())
