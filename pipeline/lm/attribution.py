"""What each entry of a block's key gives to the target's probability: integrated gradients (Dai et al. 2022,
section 3.2).

The key k of block l is the input of its MLP's down-projection at the prompt's last token, where the target's first
token is read. With P(a) the target's probability (the product over its tokens) while that key is a k,

    Attr_i = k_i * integral over a from 0 to 1 of dP/dk_i,    so that    sum_i Attr_i = P(1) - P(0)

(completeness). The paper takes the mean of the gradients at a = 1/m, 2/m .. 1 (`right`), whose error falls as 1/m and
is often a tenth of the whole at its m = 20. The Gauss-Legendre points (`gauss`) need no more gradients, and for a
smooth P their error falls faster than any power of m; only under ReLU (OPT) has P kinks.

P may be steep somewhere: the norm of r + a x turns where that is shortest, at a = -r.x / |x|^2 (the bend), and over
the width of its length there in lengths of x. With r what else is in the residual stream, that may be on the way in a
model's first blocks; with r = 0, and the norm's epsilon for a width, it is in each block with a norm between the MLP
and the residual stream (Gemma, OLMo 2 and 3, GLM 4). The points of `gauss` are therefore those of asinh((a - bend) /
width), in which that norm's output is steep nowhere. What is steep further up stays so: in block 0 of SmolLM2 20 points
leave an error of up to a tenth and 50 of a thousandth, in its other blocks 20 of a ten-thousandth.

Two paths with the same mathematics: `attributions` carries all blocks and points through one resumed forward
("staircase"), in which only the prompt's last token and the target's are run; `plain_attributions` runs the whole model
for each block and point, and is what tests hold the other to. This file is in the wing of the model and not among the
localizers, so that a method that edits by attribution does not depend on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.lm.forward import Recording, Suffix, climb, first, log_probabilities, record
from pipeline.lm.memory import rows_within
from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch, full_logits
from pipeline.lm.prompts import Prompt, pack

Rule = Literal["gauss", "right"]


def points(steps: int, rule: Rule, bend: float, width: float) -> list[tuple[float, float]]:
    """(factor a of the key, weight of the gradient there), ascending in a."""
    if rule == "right":
        return [(step / steps, 1 / steps) for step in range(1, steps + 1)]
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    low, high = math.asinh(-bend / width), math.asinh((1 - bend) / width)
    at = low + (high - low) * (nodes + 1) / 2
    share = width * np.cosh(at) * (high - low) * weights / 2
    return list(zip((bend + width * np.sinh(at)).tolist(), share.tolist(), strict=True))


SMALL = 1e-4  # no width is below; a norm's output at this factor of x tells of its epsilon
LARGE = 100.0  # a width so large is none: the points are those of a


@torch.no_grad()
def projected(lm: LanguageModel, block: int, key: Tensor) -> Tensor:
    """W k, (d,): without the down-projection's bias, which stays whatever the key is."""
    both = lm.arch.down_projs[block](torch.stack([key, torch.zeros_like(key)])).to(lm.device)
    return both[0] - both[1]


@torch.no_grad()
def bend_of(lm: LanguageModel, block: int, change: Tensor, output: Tensor, hidden: Tensor) -> tuple[float, float]:
    """Where on a key's way from 0 to 1 the norms after it turn (bend), and over which width, from SMALL to LARGE.

    change: W k. output: the MLP's output. hidden: the block's output; all (d,).
    """
    arch = lm.arch
    if arch.mlp_norms[block] is not None:  # what it makes of a x is as long as a / sqrt(a^2 + width^2)
        small, whole = (arch.mlp_to_residual(block, a * change).double().norm().item() for a in (SMALL, 1.0))
        left = min(1.0, max(SMALL, small / max(whole, 1e-30)))
        bend, width = 0.0, SMALL * math.sqrt((1 - left**2) / max(left**2 - SMALL**2, 1e-30))
    else:
        x = arch.mlp_to_residual(block, change).double()
        r = hidden.double() - x
        square = max((x @ x).item(), 1e-30)
        bend = -(r @ x).item() / square
        width = (r + bend * x).norm().item() / math.sqrt(square)
    return max(-LARGE, min(LARGE, bend)), max(SMALL, min(LARGE, width))


def attributions(
    lm: LanguageModel,
    prompt: Prompt,
    blocks: Sequence[int],
    steps: int,
    rule: Rule = "gauss",
    memory: int | None = None,
) -> dict[int, Tensor]:
    """Attributions (d_ff,) of the key's entries of each of `blocks`, float32 or float64.

    prompt: with the target whose probability is attributed. memory: bytes that a batch may take, None for all blocks
    and points at once.
    """
    climbed = _Climb(lm, prompt, sorted(set(blocks)), steps, rule)
    size = len(climbed.rows)
    if memory is not None:
        size = rows_within(lm, memory, len(prompt.reads), gradient=True)(climbed.suffix)
    sums: dict[int, Tensor] = {}
    for start in range(0, len(climbed.rows), size):
        for block, gradient in climbed.gradients(climbed.rows[start : start + size]).items():
            sums[block] = sums[block] + gradient if block in sums else gradient
    return {block: climbed.by_key(block, total) for block, total in sums.items()}


Row = tuple[int, float, float]  # block, factor of its key, weight


class _Climb:
    """A prompt with its target, recorded once, and the gradients of the target's probability where a key is scaled."""

    recording: Recording
    suffix: Suffix

    def __init__(self, lm: LanguageModel, prompt: Prompt, blocks: Sequence[int], steps: int, rule: Rule):
        self.lm, self.token = lm, prompt.target_start - 1
        self.recording = record(lm, pack([prompt.ids[:-1]]))
        self.suffix = Suffix.after(self.recording, prompt.reads)  # the prompt's last token is its first
        self.targets = torch.tensor(prompt.target_ids, device=lm.device)
        self.precise = torch.float64 if lm.dtype == torch.float64 else torch.float32
        self.projected: dict[int, Tensor] = {}
        self.rows: list[Row] = []
        for block in blocks:
            self.projected[block] = projected(lm, block, self._key(block))
            output, hidden = (
                self.recording.mlp_out[block][0, self.token],
                self.recording.h[block + 1][0, self.token],
            )
            bend = bend_of(lm, block, self.projected[block], output, hidden)
            self.rows += [(block, factor, weight) for factor, weight in points(steps, rule, *bend)]

    def _key(self, block: int) -> Tensor:
        return self.recording.mlp_in[block][0, self.token]

    def gradients(self, rows: Sequence[Row]) -> dict[int, Tensor]:
        """The weighted sum over a block's rows of the gradient of P in the MLP's output, (d,); blocks ascending."""
        changes: dict[int, Tensor] = {}

        def join(at: int) -> tuple[Tensor, None] | None:
            block = at - 1
            factors = [factor for of, factor, _ in rows if of == block]
            if not factors:
                return None
            projected, output = self.projected[block], self.recording.mlp_out[block][0, self.token]
            less = torch.tensor(factors, dtype=torch.float64, device=projected.device) - 1
            changes[block] = (less.to(projected)[:, None] * projected).requires_grad_()
            change = self.lm.arch.mlp_change(block, output.expand_as(changes[block]), changes[block])
            h = self.suffix.live(self.recording.h[at]).expand(len(factors), -1, -1)
            return torch.cat([h[:, :1] + change[:, None], h[:, 1:]], 1), None

        hidden = climb(self.lm, self.suffix, rows[0][0] + 1, join)
        logs = log_probabilities(self.lm, hidden, self.targets.expand(len(hidden), -1))
        found = torch.autograd.grad(logs.sum(-1).exp().sum(), list(changes.values()))
        return {block: self._weighted(rows, block, each) for block, each in zip(changes, found, strict=True)}

    def _weighted(self, rows: Sequence[Row], block: int, gradients: Tensor) -> Tensor:
        """Weighted only here: norms that round to float32 would round a weighted gradient otherwise."""
        weights = [weight for of, _, weight in rows if of == block]
        return torch.tensor(weights, dtype=self.precise, device=gradients.device) @ gradients.to(self.precise)

    def by_key(self, block: int, gradient: Tensor) -> Tensor:
        """k * WT gradient, (d_ff,)."""
        key = self._key(block).clone().requires_grad_()
        output = self.lm.arch.down_projs[block](key[None])
        (by_key,) = torch.autograd.grad(output, key, gradient.to(output)[None])
        return (key.detach() * by_key).to(self.precise)


def plain_attributions(
    lm: LanguageModel, prompt: Prompt, blocks: Sequence[int], steps: int, rule: Rule = "gauss"
) -> dict[int, Tensor]:
    """The reference for `attributions`: the whole model for each block and point, one after the other."""
    return {block: _plain_block(lm, prompt, block, steps, rule) for block in blocks}


def _plain_block(lm: LanguageModel, prompt: Prompt, block: int, steps: int, rule: Rule) -> Tensor:
    """Attributions (d_ff,) of one block."""
    batch, token = Batch.of([prompt], lm.device), prompt.target_start - 1
    targets = torch.tensor(prompt.target_ids, device=lm.device)
    precise = torch.float64 if lm.dtype == torch.float64 else torch.float32
    module = lm.arch.down_projs[block]
    with torch.no_grad():
        key, output, hidden = _seen(lm, batch, module, lm.arch.blocks[block], token)
    bend = bend_of(lm, block, projected(lm, block, key), output, hidden)
    put = key

    def hook(_module: torch.nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        keys = args[0].reshape(-1, args[0].shape[-1])
        at = torch.tensor([token], device=keys.device)
        return (keys.index_copy(0, at, put.to(keys)[None]).reshape(args[0].shape),)

    total = torch.zeros_like(key, dtype=precise)
    handle = module.register_forward_pre_hook(hook)
    try:
        for factor, weight in points(steps, rule, *bend):
            put = (factor * key).requires_grad_()
            logits = full_logits(lm, batch)[0, list(prompt.reads)]
            logs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
            p = logs.gather(-1, targets[:, None]).sum().exp()
            total += weight * torch.autograd.grad(p, put)[0].to(precise)
    finally:
        handle.remove()
    return key.to(precise) * total


def _seen(
    lm: LanguageModel, batch: Batch, module: torch.nn.Module, block: torch.nn.Module, token: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Input and output of `module`, and output of `block`, at a token of the one prompt."""
    seen: dict[str, Tensor] = {}

    def keep(_module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        # A copy, as a family may go on to change the output in place.
        seen["key"], seen["output"] = (x.reshape(-1, x.shape[-1])[token].clone() for x in (args[0], output))

    def keep_block(_module: torch.nn.Module, _args: tuple[Tensor], output: Tensor | tuple[Tensor]) -> None:
        hidden = first(output)
        seen["hidden"] = hidden.reshape(-1, hidden.shape[-1])[token].clone()

    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(keep).remove)
        stack.callback(block.register_forward_hook(keep_block).remove)
        full_logits(lm, batch)
    return seen["key"].to(lm.device), seen["output"].to(lm.device), seen["hidden"].to(lm.device)
