"""Spreading wanted changes of a hidden state over the down-projections of several blocks (Meng et al. 2023, section 4.2
and Algorithm 1).

Block after block, from the lowest: with the blocks below already changed, the keys K (one row a request) and what is
still missing at the highest block, R = z - h, are taken anew; the block takes its share R / (blocks left), by

    Delta = RT A,  A = K (lambda C + KT K)^-1,

keys and residuals being rows; C is the mean of k kT over tokens, so lambda does not depend on how much text there was.
A key is the mean over the request's prompts, h is that of its bare prompt, both at the subject's last token; where the
subject is noised both are means over the draws too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.edit.moments import Whitener
from pipeline.edit.protocol import EditRequest, LowRank, Update
from pipeline.edit.value import TOKENS_AT_ONCE, packed_subjects
from pipeline.lm.forward import Suffix, first, record
from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch, full_logits
from pipeline.lm.prompts import beside

Solve = Callable[[int, Tensor], Tensor]  # block and K (n, d_ff) to A (n, d_ff)


@dataclass(frozen=True)
class Seen:
    """What is taken of the model as changed so far. keys: K (n, d_ff) of one block; hidden: h (n, d); both float64."""

    keys: Tensor
    hidden: Tensor


def shares(whitener: Whitener, weight: float, keys: Tensor) -> Tensor:
    """A = K (lambda C + KT K)^-1 for K (n, d_ff): (n, d_ff) float64.

    With U = K C^-1 this is (lambda I + U KT)^-1 U, a system of the size of the requests; where they are more than d_ff,
    the system of that size is solved as it stands.
    """
    keys = keys.to(whitener.factor)
    if len(keys) <= keys.shape[1]:
        whitened = whitener.solve(keys)
        system = whitened @ keys.T
        return torch.linalg.solve(system + weight * torch.eye(len(keys)).to(system), whitened)
    moment = whitener.factor @ whitener.factor.T
    return torch.linalg.solve(weight * moment + keys.T @ keys, keys.T).T


def spread(blocks: Sequence[int], z: Tensor, seen: Callable[[int], Seen], change: Callable[[Update], None],
           solve: Solve, scale: float = 1.0) -> list[LowRank]:  # fmt: skip
    """The updates of `blocks` (ascending) that bring the hidden states at the last of them to z (n, d).

    seen: keys of a block, and the hidden states, under the changes so far; change: takes a change up. scale: what the
    residual stream multiplies an MLP's output by.
    """
    updates: list[LowRank] = []
    for i, block in enumerate(blocks):
        now = seen(block)
        missing = (z.to(now.hidden) - now.hidden) / (len(blocks) - i) / scale
        update = LowRank(block, missing.T, solve(block, now.keys).to(missing).T)
        updates.append(update)
        change(update)
    return updates


class Carried:
    """The prompts of some requests up to their subjects, whose hidden states are carried up through changed blocks.

    Only tokens that can change what is asked for are run, and only the blocks that are asked for.
    """

    def __init__(self, lm: LanguageModel, requests: Sequence[EditRequest], draws: Sequence[int]):
        """draws: the steps whose noise is used, where the requests have any; their prompts are then run once a draw."""
        self.lm = lm
        packed, noised = beside([packed_subjects(request) for request in requests]), requests[0].noise is not None
        tables = [torch.cat([r.noise.table(r.prompts, step) for r in requests if r.noise]) for step in draws if noised]
        self.recording = record(lm, packed, noise=torch.stack(tables) if noised else None, mlp=False)
        self.suffix = Suffix.after(self.recording, range(len(packed)))
        self.sample = torch.arange(len(tables), device=lm.device) if noised else None
        self.draws = len(tables) if noised else 1
        paths = iter(packed.where)
        self.sites = [[next(paths)[-1] for _ in request.prompts] for request in requests]
        self.site = torch.tensor([i for sites in self.sites for i in sites], device=lm.device)
        self.bare = torch.tensor([sites[0] for sites in self.sites], device=lm.device)
        counts = torch.tensor([len(sites) for sites in self.sites], device=lm.device)
        owner = torch.repeat_interleave(torch.arange(len(counts), device=lm.device), counts)
        self.mean = torch.zeros(len(counts), len(owner), dtype=torch.float64, device=lm.device)
        self.mean[owner, torch.arange(len(owner), device=lm.device)] = 1 / counts[owner].double()

    def keep_only(self, block: int) -> None:
        """Forget what was recorded of other blocks' inputs, keys and values."""
        self.recording.h = [h if i == block else h.new_zeros(()) for i, h in enumerate(self.recording.h)]
        self.recording.keys, self.recording.values = [], []

    @torch.no_grad()
    def run(self, h: Tensor, start: int, end: int, updates: Mapping[int, Update]) -> Tensor:
        """Inputs h (B, N, d) of block `start` to those of block `end`, with the updates added to the MLPs' outputs."""
        with added(self.lm, updates):
            for block in range(start, end):
                h = self.suffix.run_block(self.lm, block, h, self.sample)
        return h

    def seen(self, h: Tensor, block: int, top: int) -> tuple[Tensor, Tensor]:
        """Sums over the draws of K at `block`, whose inputs are h, and of the hidden states after block `top`."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor]) -> None:
            keys = args[0].reshape(len(h), -1, args[0].shape[-1])[:, self.site.to(args[0].device)]
            found.append(self.mean @ keys.to(self.mean).sum(0))

        handle = self.lm.arch.down_projs[block].register_forward_pre_hook(keep)
        try:
            above = self.run(h, block, top + 1, {})
        finally:
            handle.remove()
        return found[0], above[:, self.bare].double().sum(0)


def fast(lm: LanguageModel, carried: Sequence[Carried], blocks: Sequence[int], z: Tensor, solve: Solve,
         *, same: bool) -> list[LowRank]:  # fmt: skip
    """`spread` by the resumed forward. same: all of `carried` are of the same requests, under other draws."""
    h = [each.recording.h[blocks[0]] for each in carried]
    following = dict(zip(blocks, [*blocks[1:], blocks[-1] + 1], strict=True))

    def seen(block: int) -> Seen:
        parts = [each.seen(at, block, blocks[-1]) for each, at in zip(carried, h, strict=True)]
        if same:
            draws = sum(each.draws for each in carried)
            return Seen(sum(k for k, _ in parts) / draws, sum(t for _, t in parts) / draws)  # type: ignore[arg-type]
        counts = [each.draws for each in carried]
        return Seen(*(torch.cat([p[j] / n for p, n in zip(parts, counts, strict=True)]) for j in (0, 1)))

    def change(update: Update) -> None:
        block = update.layer
        if block != blocks[-1]:
            h[:] = [each.run(at, block, following[block], {block: update}) for each, at in zip(carried, h, strict=True)]

    return spread(blocks, z, seen, change, solve, lm.arch.residual_scale)


def carried_of(lm: LanguageModel, request: EditRequest, draws: int) -> list[Carried]:
    """One request's prompts, in as many recordings as its draws of noise ask for."""
    if request.noise is None:
        return [Carried(lm, [request], [])]
    tokens = sum(prompt.last_subject + 1 for prompt in request.prompts)
    size = max(1, TOKENS_AT_ONCE // tokens)
    return [Carried(lm, [request], range(low, min(draws, low + size))) for low in range(0, draws, size)]


@contextmanager
def added(lm: LanguageModel, updates: Mapping[int, Update]) -> Iterator[None]:
    """Within: each update is added to its block's MLP output, for all rows; the weights stay as they are."""

    def adding(update: Update) -> Callable[..., Tensor]:
        return lambda _module, args, output: output + update.output(args[0]).to(output)

    with ExitStack() as stack:
        for block, update in updates.items():
            stack.callback(lm.arch.down_projs[block].register_forward_hook(adding(update)).remove)
        yield


@torch.no_grad()
def plain(
    lm: LanguageModel, request: EditRequest, blocks: Sequence[int], z: Tensor, solve: Solve, draws: int
) -> list[LowRank]:
    """`spread` of one request by whole prompts through the whole model, the changes in its weights; afterwards these
    are what they were, bit for bit.
    """
    batch = Batch.of(request.prompts, lm.device)
    each = torch.arange(len(request.prompts))
    sites = torch.tensor([prompt.last_subject for prompt in request.prompts])
    noises: list[Tensor | None] = [None]
    if request.noise is not None:
        rows = request.noise.rows(request.prompts)
        noises = [batch.noise(request.noise.table(request.prompts, step), rows) for step in range(draws)]

    def seen(block: int) -> Seen:
        keys: list[Tensor] = []
        hidden: list[Tensor] = []

        def keep_keys(_module: nn.Module, args: tuple[Tensor]) -> None:
            found = args[0].reshape(len(sites), -1, args[0].shape[-1])
            keys.append(found[each, sites].double().mean(0))

        def keep_hidden(_module: nn.Module, _args: Any, output: Any) -> None:
            hidden.append(first(output)[0, sites[0]].double())

        with ExitStack() as stack:
            stack.callback(lm.arch.down_projs[block].register_forward_pre_hook(keep_keys).remove)
            stack.callback(lm.arch.blocks[blocks[-1]].register_forward_hook(keep_hidden).remove)
            for noise in noises:
                full_logits(lm, batch, noise)
        return Seen(torch.stack(keys).mean(0)[None], torch.stack(hidden).mean(0)[None])

    def change(update: Update) -> None:
        lm.arch.add_to_weight(update.layer, update.matrix())

    with lm.arch.kept(blocks):
        return spread(blocks, z, seen, change, solve, lm.arch.residual_scale)
