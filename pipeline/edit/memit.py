"""MEMIT (Meng et al. 2023): a hidden state's new value z, spread over the MLP down-projections of a window of blocks.

z = h + delta is the output of the window's last block at the subject's last token, optimised as ROME's v* is (their
section 4.1; pipeline.edit.value); the blocks of the window, centred on the layer that the edit stands for, then take
equal shares of what is missing, one after the other (their Algorithm 1; pipeline.edit.spread). `edit_many` makes many
edits at once: one system of equations a block holds the keys of all.

Where the window's last block is the model's last and the answer is read at a later token, delta is 0 by structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.edit import spread
from pipeline.edit.many import new_values, packs
from pipeline.edit.moments import Whiteners
from pipeline.edit.objective import reaches
from pipeline.edit.protocol import Edit, EditRequest, LowRank, Method, Resources, failed, usable
from pipeline.edit.value import Prepared, plain_delta
from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel, window_range
from pipeline.settings.fields import (
    ErasureLoss,
    LearningRate,
    NormFactor,
    Probability,
    Steps,
    StopLoss,
    Weight,
    Window,
)


@dataclass(frozen=True, kw_only=True)
class MemitSettings:
    """The `memit` section of params.yaml for one problem; see there for what each value does."""

    window: Window
    steps: Steps
    learning_rate: LearningRate
    kl_factor: Weight
    weight_decay: Weight
    clamp_norm_factor: NormFactor
    covariance_weight: Weight
    leave_when: Probability
    stop_loss: StopLoss
    erasure_loss: ErasureLoss


class Memit:
    """The method: one editor for all layers of a model; C of a block is factored when it is first needed."""

    def __init__(self, settings: MemitSettings, resources: Resources):
        self.settings, self.resources = settings, resources
        self.whiteners = Whiteners(resources.moment, resources.ridge)

    @property
    def window(self) -> int:
        return self.settings.window

    def edit(
        self, lm: LanguageModel, request: EditRequest, layers: Sequence[int], memory: int | None = None
    ) -> list[Edit]:
        """One edit for each of `layers`, in their order. memory: bytes that a batch may take, None for all at once."""
        windows = {layer: window_range(layer, self.window, lm.n_layers) for layer in layers}
        tops = sorted({blocks[-1] for blocks in windows.values()})
        draws = self.settings.steps if request.noise else 1
        found: dict[int, tuple[Tensor, Tensor, float, int]] = {}  # top: h, delta, last loss, steps
        if self.resources.path == "plain":
            for top in tops:
                site, delta, loss, steps = plain_delta(lm, request, self.settings, top, "hidden")
                found[top] = site.v0, delta, loss, steps
        else:
            prepared = Prepared(lm, request, draws, "hidden")
            for top, delta, loss, steps in prepared.optimise_within(self.settings, tops, memory):
                found[top] = prepared.site(top).v0, delta, loss, steps
        carried = [] if self.resources.path == "plain" else spread.carried_of(lm, request, draws)
        edits = []
        for layer in layers:
            blocks = windows[layer]
            h, delta, loss, steps = found[blocks[-1]]
            if not usable(delta) or loss != loss:
                edits.append(failed(layer, "failed: the loss is not a finite number"))
                continue
            z = (h.double() + delta.double())[None]
            try:
                if self.resources.path == "plain":
                    updates = spread.plain(lm, request, blocks, z, self._shares, draws)
                else:
                    updates = spread.fast(lm, carried, blocks, z, self._shares, same=True)
            except UserError as error:
                edits.append(failed(layer, f"failed: {error}"))
                continue
            edits.append(_made(lm, request, layer, updates, float(delta.double().norm()), loss, steps))
        return edits

    def edit_many(
        self, lm: LanguageModel, requests: Sequence[EditRequest], blocks: Sequence[int], memory: int | None = None
    ) -> tuple[LowRank, ...]:
        """All requests at once: the updates of `blocks` (ascending, any number of them anywhere), of rank n for n
        requests.

        memory: bytes that a batch may take, None for no bound. Raises UserError where a request has no finite new
        value, which would spoil those of all, and where there is no resumed forward (path: plain).
        """
        if self.resources.path == "plain":
            raise UserError("many edits at once are made by the resumed forward only; this model or path has none")
        blocks, top, draws = list(blocks), blocks[-1], 1
        if blocks != sorted(set(blocks)) or not 0 <= blocks[0] <= top < lm.n_layers:
            raise UserError(f"blocks are {blocks} but must be different, ascending and in 0 to {lm.n_layers - 1}")
        if requests[0].noise:
            draws = self.settings.steps
        z: list[Tensor] = []
        carried: list[spread.Carried] = []
        for part in packs(lm, requests, draws, memory):
            h, delta = new_values(lm, part, self.settings, top)
            for request, change in zip(part, delta, strict=True):
                if not usable(change):
                    raise UserError(f"{request.fact_id} has no finite new value at block {top}; leave it out")
            z.append(h.double() + delta.double())
            carried.append(spread.Carried(lm, part, range(draws)))
            carried[-1].keep_only(blocks[0])
        return tuple(spread.fast(lm, carried, blocks, torch.cat(z), self._shares, same=False))

    def _shares(self, block: int, keys: Tensor) -> Tensor:
        return spread.shares(self.whiteners.of(block), self.settings.covariance_weight, keys)


def _made(
    lm: LanguageModel, request: EditRequest, layer: int, updates: list[LowRank], norm: float, loss: float, steps: int
) -> Edit:
    if not all(usable(update.left) and usable(update.right) for update in updates):
        return failed(layer, "failed: the update is not finite")
    edit = Edit(layer, tuple(updates), norm, loss, steps)
    return replace(edit, acts=reaches(lm, request, updates[-1].layer))


METHOD = Method(name="memit", settings=MemitSettings, editor=Memit, moments=True)
