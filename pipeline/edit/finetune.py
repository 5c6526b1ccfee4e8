"""Fine-tuning: Adam on the down-projections of a few blocks, for the target's probability after the bare prompt.

Four methods that differ in their settings alone. FT and FT+L (Meng et al. 2022) tune one block, without
a bound and with every weight kept within `max_change` of where it was (an L-infinity ball, Zhu et al. 2020); FT-1 and
FT-5 (Hase et al. 2023) tune a window of one and of five blocks within such a bound.

The loss is the mean NLL of the target's tokens, each after those before it; in fact erasure exp(-NLL); in fact forcing
its mean over `noise_copies` copies of the prompt, each of which has noise of its own, new at each step. What is tuned
is the change D of W, from 0: Adam does not know where a weight starts, so this is tuning W, but for rounding.

Two paths with the same mathematics: `pipeline.edit.dense` carries the edits of all layers through one resumed forward
a step; the plain one has the changed weight in the model, runs whole prompts through the whole model and takes the
gradient of the weight, one edit at a time, and is what tests hold the other to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.edit.dense import DenseClimb, copies
from pipeline.edit.objective import stops
from pipeline.edit.protocol import Dense, Edit, EditRequest, Method, Resources, failed, usable
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.plain import Batch, full_logits
from pipeline.settings.fields import Copies, LearningRate, MaxChange, Steps, StopLoss, Window


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings:
    """The section of a fine-tuning method in params.yaml for one problem; see there for what each value does."""

    steps: Steps
    learning_rate: LearningRate
    max_change: MaxChange
    window: Window
    stop_loss: StopLoss
    noise_copies: Copies


class FineTune:
    """The method. An edit's delta_norm is the length of all its changes together."""

    def __init__(self, settings: FineTuneSettings, resources: Resources):
        self.settings, self.resources = settings, resources

    @property
    def window(self) -> int:
        return self.settings.window

    def edit(
        self, lm: LanguageModel, request: EditRequest, layers: Sequence[int], memory: int | None = None
    ) -> list[Edit]:
        """One edit for each of `layers`, in their order. memory: bytes that a batch may take, None for all at once."""
        if self.resources.path == "plain":
            return [self._plain(lm, request, layer) for layer in layers]
        order = sorted(set(layers))
        climb = DenseClimb(lm, request, self.settings.noise_copies)
        size = len(order) if memory is None else climb.edits_within(memory, self.window)
        found: dict[int, Edit] = {}
        for start in range(0, len(order), size):
            found |= {edit.layer: edit for edit in self._batch(climb, order[start : start + size])}
        return [found[layer] for layer in layers]

    def _batch(self, climb: DenseClimb, layers: Sequence[int]) -> list[Edit]:
        """The edits at `layers` (ascending), all in one climb a step; an edit that stops leaves the batch."""
        lm, request, settings = climb.lm, climb.request, self.settings
        changes = [zeros(lm, window_range(layer, self.window, lm.n_layers)) for layer in layers]
        # One pass over each change; on the plain path the same formula is many.
        optimiser = torch.optim.Adam([d for each in changes for d in each.values()], settings.learning_rate, fused=True)
        losses, steps = [float("nan")] * len(layers), [0] * len(layers)
        active = list(range(len(layers)))
        for step in range(settings.steps):
            climb.draw(step)
            optimiser.zero_grad(set_to_none=True)
            loss = fit(request, climb.log_probabilities([changes[e] for e in active]))
            for e, value in zip(active, loss.tolist(), strict=True):
                losses[e] = value
            stopped = {e for e in active if stops(request, settings.stop_loss, losses[e])}
            active = [e for e in active if e not in stopped]
            if not active:
                break
            loss.sum().backward()
            for change in (d for e in stopped for d in changes[e].values()):
                change.grad = None  # Adam would go on by its momentum
            optimiser.step()
            for e in active:
                steps[e] += 1
                self._bound(changes[e])
        bound = settings.max_change
        return [finished(lm, *each, bound) for each in zip(layers, changes, losses, steps, strict=True)]

    def _plain(self, lm: LanguageModel, request: EditRequest, layer: int) -> Edit:
        """The reference; the model's weights are what they were afterwards, bit for bit."""
        settings, arch = self.settings, lm.arch
        prompts, rows = copies(request, settings.noise_copies)
        batch = Batch.of(prompts, lm.device)
        changes = zeros(lm, window_range(layer, self.window, lm.n_layers))
        optimiser = torch.optim.Adam(changes.values(), settings.learning_rate)
        weights = {block: arch.down_projs[block].weight for block in changes}
        before = {block: weight.detach().clone() for block, weight in weights.items()}
        value, steps = float("nan"), 0
        try:
            for weight in weights.values():
                weight.requires_grad_(True)
            for step in range(settings.steps):
                noise = None if request.noise is None else batch.noise(request.noise.table(prompts, step), rows)
                logits = full_logits(lm, batch, noise)
                logs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
                each = [logs[b, list(prompt.reads), list(prompt.target_ids)] for b, prompt in enumerate(prompts)]
                loss = fit(request, torch.stack(each)[None])
                value = float(loss.detach())
                if stops(request, settings.stop_loss, value):
                    break
                loss.sum().backward()
                for block, change in changes.items():
                    change.grad = arch.turned(block, weights[block].grad).to(change)
                    weights[block].grad = None
                optimiser.step()
                steps += 1
                self._bound(changes)
                for block, weight in weights.items():
                    weight.data.copy_(before[block])
                    arch.add_to_weight(block, changes[block].detach())
        finally:
            for block, weight in weights.items():
                weight.data.copy_(before[block])
                weight.grad = None
                weight.requires_grad_(False)
        return finished(lm, layer, changes, value, steps, settings.max_change)

    def _bound(self, changes: Mapping[int, Tensor]) -> None:
        """In place: no entry is larger than the bound."""
        if self.settings.max_change is not None:
            with torch.no_grad():
                for change in changes.values():
                    change.clamp_(-self.settings.max_change, self.settings.max_change)


def finished(
    lm: LanguageModel, layer: int, changes: Mapping[int, Tensor], loss: float, steps: int, bound: float | None
) -> Edit:
    """The edit that the tuned changes D (d, d_ff) of some blocks are. bound: `max_change`, kept to the last bit."""
    updates = []
    for block, tuned in changes.items():
        tuned.grad = None
        change = tuned.detach()
        if loss != loss or not usable(change):
            return failed(layer, "failed: the loss is not a finite number")
        if bound is not None:
            with lm.arch.weight(block) as weight:
                settle_(change, weight.to(change.device), bound)
        updates.append(Dense(block, change))
    norm = sum(float(update.change.double().square().sum()) for update in updates) ** 0.5
    return Edit(layer, tuple(updates), norm, loss, steps)


def zeros(lm: LanguageModel, blocks: Sequence[int]) -> dict[int, Tensor]:
    """The change of each block's W (d, d_ff) before the first step, float32 or float64."""
    precise = torch.float64 if lm.dtype == torch.float64 else torch.float32
    shape = {block: (lm.arch.width, lm.arch.key_size(block)) for block in blocks}
    return {b: torch.zeros(shape[b], dtype=precise, device=lm.device, requires_grad=True) for b in blocks}


def fit(request: EditRequest, logs: Tensor) -> Tensor:
    """The loss of each edit, (E,), of log-probabilities of the target's tokens (E, copies, tokens)."""
    nll = -logs.mean(-1)
    return (torch.exp(-nll) if request.minimise else nll).mean(-1)


def settle_(change: Tensor, weight: Tensor, bound: float) -> None:
    """In place: shorten entries of `change` until no weight that the model comes to store, W + D rounded to its number
    format, is further than `bound` from W.

    Clamping D is not enough, as rounding can carry a sum past the bound. The difference of two stored numbers is taken
    in float64; where that would round, it never falls from above the bound to below it, and what lies on it counts as
    beyond.
    """
    change.clamp_(-bound, bound)
    flat, base = change.view(-1), weight.contiguous().view(-1)
    at = _beyond(flat, base, bound).nonzero()[:, 0]
    while len(at):
        d, w = flat[at], base[at]
        # At least the distance to the next number that can be stored.
        space = torch.finfo(w.dtype).eps * torch.maximum(d.abs(), (w + d.to(w.dtype)).abs().to(d.dtype))
        flat[at] = d.sign() * (d.abs() - space).clamp_(min=0)
        at = at[_beyond(flat[at], w, bound)]


def _beyond(change: Tensor, weight: Tensor, bound: float) -> Tensor:
    """Where W + D, as it is stored, is `bound` or more from W."""
    stored = weight + change.to(weight.dtype)
    return (stored.double() - weight.double()).abs_() >= bound


METHODS = tuple(
    Method(name=name, settings=FineTuneSettings, editor=FineTune, moments=False)
    for name in ("ft", "ft_l", "ft_1", "ft_5")
)
