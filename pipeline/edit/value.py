"""The new value v* = v0 + delta of an MLP's output at the subject's last token, optimised by Adam (Meng et al. 2022,
section 3.1); or of a block's output, the hidden state, as MEMIT has it (Meng et al. 2023, section 4.1).

Two paths with the same mathematics: `Prepared` carries the edits of all layers through one resumed forward a step,
`plain_delta` runs whole prompts through the whole model, one edit at a time, and is what tests hold the other to.

Where the request noises the subject (fact forcing), step s adds delta to the outputs under the draws of step s, which
no other step has; the published code draws anew at each pass too. k*, k and v0 cannot be of one of these draws without
fitting the edit to it, so they are means over the draws of all steps of the settings, whether or not an edit stops
early: of the keys of all prompts (k*), and of the bare prompt's keys (k) and outputs (v0). As the down-projection is
linear, v0 is W k (and bias) here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pipeline.edit.objective import Objective, Weights, clamp_, log_distribution, reaches, stops
from pipeline.edit.protocol import EditRequest
from pipeline.lm.forward import Recording, Suffix, climb, first, record
from pipeline.lm.memory import rows_within
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import no_noise
from pipeline.lm.plain import Batch, full_logits
from pipeline.lm.prompts import Packed, pack

Output = Literal["mlp", "hidden"]  # what delta is added to: the MLP's output or the block's
TOKENS_AT_ONCE = 256  # of several draws in one run for the keys under noise; more gains little and takes memory


class Descent(Weights, Protocol):
    """How delta is optimised; a method's settings have these."""

    @property
    def steps(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def clamp_norm_factor(self) -> float: ...
    @property
    def leave_when(self) -> float | None: ...
    @property
    def stop_loss(self) -> float | None: ...


@dataclass(frozen=True)
class Site:
    """What an edit needs of the unedited model at one block: keys (P, d_ff), v0 (d,), float32 or better.

    v0 is of the output that delta is added to. Under noise both are means over the steps' draws.
    """

    keys: Tensor
    v0: Tensor


@dataclass(frozen=True)
class MappedSite(Site):
    """A site that can also say what the down-projection makes of another key."""

    output: Callable[[Tensor], Tensor]


def _site(lm: LanguageModel, module: torch.nn.Module, keys: Tensor, v0: Tensor) -> MappedSite:
    def output(key: Tensor) -> Tensor:
        with torch.no_grad():
            return module(key.to(lm.dtype)[None])[0].double().to(key.device)

    precise = torch.float64 if lm.dtype == torch.float64 else torch.float32
    return MappedSite(keys.to(precise), v0.to(precise), output)


def noise_rows(request: EditRequest) -> list[list[int]]:
    """The rows of the noise of each prompt's tokens, the essence prompt's last: it gets none."""
    rows = request.noise.rows(request.prompts) if request.noise else no_noise(request.prompts)
    return [*rows, *no_noise([request.essence])]


def packed_request(request: EditRequest) -> Packed:
    """The request's prompts, the essence prompt last, each up to where it is last read."""
    prompts = [*request.prompts, request.essence]
    ends = [len(prompt.ids) - 1 for prompt in request.prompts] + [request.essence.last_subject + 1]
    return pack(
        [prompt.ids[:end] for prompt, end in zip(prompts, ends, strict=True)],
        [rows[:end] for rows, end in zip(noise_rows(request), ends, strict=True)],
    )


def packed_subjects(request: EditRequest) -> Packed:
    """The request's prompts, without the essence prompt, each up to the subject's last token."""
    ends = [prompt.last_subject + 1 for prompt in request.prompts]
    return pack(
        [prompt.ids[:end] for prompt, end in zip(request.prompts, ends, strict=True)],
        [rows[:end] for rows, end in zip(noise_rows(request)[:-1], ends, strict=True)],
    )


class Prepared:
    """One recording of a request's prompts, and the suffix that its optimisation runs again and again.

    draws: how many steps there are, over whose draws keys and v0 are means where the subject is noised. The recording
    and the suffix are then of the step that `draw` was last called for; the tree of packed tokens stays what it is.
    of: the output that delta is added to.
    """

    recording: Recording
    suffix: Suffix

    def __init__(self, lm: LanguageModel, request: EditRequest, draws: int = 1, of: Output = "mlp"):
        self.lm, self.request, self.of = lm, request, of
        prompts = [*request.prompts, request.essence]
        self.packed = packed_request(request)
        where = self.packed.where
        self.live = sorted({i for p, prompt in enumerate(prompts) for i in where[p][prompt.last_subject :]})
        place = {index: s for s, index in enumerate(self.live)}
        self._drawn: int | None = None
        self.draw(0)
        self._means = self._sites_under_noise(draws) if request.noise else None
        device = lm.device
        self.site_index = torch.tensor(
            [where[p][prompt.last_subject] for p, prompt in enumerate(prompts)], device=device
        )
        # Two prompts may share their site (the essence prompt that begins as the bare one does): add delta there once.
        unique = sorted({place[int(i)] for i in self.site_index})
        self.sites = torch.tensor(unique, device=device)
        reads = [place[where[p][j]] for p, prompt in enumerate(request.prompts) for j in prompt.reads]
        self.reads = torch.tensor([*reads, place[where[-1][-1]]], device=device)

    def draw(self, step: int) -> None:
        """Record the prompts under the noise of `step`; without noise one recording serves all steps."""
        if self._drawn == step or (self._drawn is not None and self.request.noise is None):
            return
        noise = self.request.noise
        table = None if noise is None else noise.table(self.request.prompts, step)[None]
        self.recording = record(self.lm, self.packed, noise=table)
        self.suffix, self._drawn = Suffix.after(self.recording, self.live), step

    def _sites_under_noise(self, draws: int) -> list[tuple[Tensor, Tensor]]:
        """Keys (P, d_ff) and v0 (d,) of each block, means over the first `draws` steps; only the prompts' tokens up
        to the subject's last are run.
        """
        assert self.request.noise is not None
        prompts, packed = self.request.prompts, packed_subjects(self.request)
        at = torch.tensor([path[-1] for path in packed.where], device=self.lm.device)
        precise = torch.float64 if self.lm.dtype == torch.float64 else torch.float32
        sums: list[tuple[Tensor, Tensor]] = []
        size = max(1, TOKENS_AT_ONCE // len(packed))
        for low in range(0, draws, size):
            tables = [self.request.noise.table(prompts, step) for step in range(low, min(draws, low + size))]
            recording = record(self.lm, packed, noise=torch.stack(tables))
            seen = [
                (keys[:, at].to(precise).sum(0), output[:, at[0]].to(precise).sum(0))
                for keys, output in zip(recording.mlp_in, self._outputs(recording), strict=True)
            ]
            sums = [(k + a, v + b) for (k, v), (a, b) in zip(sums, seen, strict=True)] if sums else seen
        return [(keys / draws, v0 / draws) for keys, v0 in sums]

    def _outputs(self, recording: Recording) -> list[Tensor]:
        """What delta is added to, (B, N, d) of each block."""
        return recording.mlp_out if self.of == "mlp" else recording.h[1:]

    def site(self, layer: int) -> MappedSite:
        """Keys and v0 at a block."""
        if self._means is not None:
            return _site(self.lm, self.lm.arch.down_projs[layer], *self._means[layer])
        recording, module = self.recording, self.lm.arch.down_projs[layer]
        keys = recording.mlp_in[layer][0, self.site_index[:-1]]
        return _site(self.lm, module, keys, self._outputs(recording)[layer][0, self.site_index[0]])

    def _add(self, h: Tensor, layer: int, delta: Tensor) -> Tensor:
        """Outputs h (1, S, d) of block `layer` with `delta` added at the sites, to what was recorded of the MLP or to h
        itself.
        """
        change = delta.to(h.dtype).expand(len(self.sites), -1)
        if self.of == "mlp":
            output = self.recording.mlp_out[layer][0, self.suffix.origin[self.sites]]
            change = self.lm.arch.mlp_change(layer, output, change)
        return h.index_add(1, self.sites, change[None])

    def _output(self, layer: int) -> Tensor:
        """The recorded output of block `layer` at the live tokens: (1, S, d)."""
        return self.suffix.live(self.recording.h[layer + 1])

    def logits(self, layers: Sequence[int], deltas: Sequence[Tensor]) -> Tensor:
        """Logits at the read positions with delta e added at block layers[e] (ascending): (E, reads + 1, V)."""

        def join(at: int) -> tuple[Tensor, None] | None:
            rows = [self._add(self._output(at - 1), at - 1, deltas[e]) for e, x in enumerate(layers) if x == at - 1]
            return (torch.cat(rows), None) if rows else None

        hidden = climb(self.lm, self.suffix, layers[0] + 1, join)
        return self.lm.arch.logits(hidden[:, self.reads])

    def logits_at_zero(self, layers: Sequence[int], deltas: Sequence[Tensor]) -> Tensor:
        """`logits` while all deltas are 0: one row, (1, reads + 1, V), through which the gradient of each goes."""
        added = dict(zip(layers, deltas, strict=True))
        h = self._add(self._output(layers[0]), layers[0], deltas[0])
        for layer in range(layers[0] + 1, self.lm.n_layers):
            h = self.suffix.run_block(self.lm, layer, h, None)
            if layer in added:
                h = self._add(h, layer, added[layer])
        return self.lm.arch.logits(h[:, self.reads])

    def optimise_within(
        self, settings: Descent, layers: Sequence[int], memory: int | None
    ) -> Iterator[tuple[int, Tensor, float, int]]:
        """Layer, delta, last loss and steps of the edits at `layers` (ascending), in batches of as many as fit.

        memory: bytes that a batch may take, None for all at once.
        """
        size = len(layers)
        if memory is not None:
            size = rows_within(self.lm, memory, len(self.reads), gradient=True)(self.suffix)
        for start in range(0, len(layers), size):
            chosen = layers[start : start + size]
            yield from zip(chosen, *self.optimise(settings, chosen), strict=True)

    def optimise(self, settings: Descent, layers: Sequence[int]) -> tuple[list[Tensor], list[float], list[int]]:
        """delta, last loss and steps of the edits at `layers` (ascending)."""
        self.draw(0)
        with torch.no_grad():
            base = log_distribution(self.lm.arch.logits(self.recording.h[-1][0, self.packed.where[-1][-1]]))
        objective = Objective(self.request, settings, base)
        v0_norms = [self.site(layer).v0.norm() for layer in layers]
        deltas = [torch.zeros_like(self.site(layer).v0, requires_grad=True) for layer in layers]
        optimiser = torch.optim.Adam(deltas, lr=settings.learning_rate)
        losses, steps = [float("nan")] * len(layers), [0] * len(layers)
        active = [e for e, layer in enumerate(layers) if reaches(self.lm, self.request, layer)]
        for e in set(range(len(layers))) - set(active):
            with torch.no_grad():
                loss, _ = objective(self.logits([layers[e]], [deltas[e]]), deltas[e][None], v0_norms[e][None])
            losses[e] = float(loss)
        for step in range(settings.steps if active else 0):
            self.draw(step)
            optimiser.zero_grad(set_to_none=True)
            edited, changes = [layers[e] for e in active], [deltas[e] for e in active]
            if step == 0:  # all edits are the unedited model as yet, and one row has the gradients of all
                logits = self.logits_at_zero(edited, changes)
                loss, least = objective(logits, torch.zeros_like(changes[0])[None], v0_norms[active[0]][None])
            else:
                logits = self.logits(edited, changes)
                loss, least = objective(logits, torch.stack(changes), torch.stack([v0_norms[e] for e in active]))
            for value, e in zip(loss.detach().expand(len(active)).tolist(), active, strict=True):
                losses[e] = value
            stopped = {e for e in active if stops(self.request, settings.stop_loss, losses[e])}
            if len(stopped) == len(active):
                break
            loss.sum().backward()
            for e in stopped:
                deltas[e].grad = None  # Adam would go on by its momentum
            optimiser.step()
            with torch.no_grad():
                for e in set(active) - stopped:
                    steps[e] += 1
                    clamp_(deltas[e], settings.clamp_norm_factor * v0_norms[e])
            if settings.leave_when is not None and not self.request.minimise:
                lowest = least.expand(len(active)).tolist()
                stopped |= {e for e, p in zip(active, lowest, strict=True) if p >= settings.leave_when}
            active = [e for e in active if e not in stopped]
            if not active:
                break
        return [delta.detach() for delta in deltas], losses, steps


def plain_delta(
    lm: LanguageModel, request: EditRequest, settings: Descent, layer: int, of: Output = "mlp"
) -> tuple[MappedSite, Tensor, float, int]:
    """The reference: whole prompts through the whole model at every step; (site, delta, last loss, steps).

    The keys of the site are those of the MLP; there are none of a hidden state.
    """
    batch = Batch.of([*request.prompts, request.essence], lm.device)
    rows = noise_rows(request)

    def noise(step: int) -> Tensor | None:
        return batch.noise(request.noise.table(request.prompts, step), rows) if request.noise else None

    sites = torch.tensor([p.last_subject for p in [*request.prompts, request.essence]])
    each = torch.arange(len(sites))
    seen: tuple[list[Tensor], list[Tensor]] = [], []  # keys and v0, of each draw
    precise = torch.float64 if lm.dtype == torch.float64 else torch.float32
    delta: Tensor | None = None

    def hook(_module: torch.nn.Module, args: tuple[Tensor], outputs: Any) -> Any:
        output = first(outputs)
        shape = output.shape
        output = output.reshape(len(sites), -1, shape[-1])
        if delta is None:
            keys = args[0].reshape(len(sites), -1, args[0].shape[-1])
            seen[0].append(keys[each, sites][:-1].detach().to(lm.device, precise))
            # Copied, as a family may go on to change the output in place.
            seen[1].append(output[0, sites[0]].detach().to(lm.device, precise, copy=True))
            return None
        change = delta.to(output).expand(len(sites), -1)
        changed = output.index_put((each, sites), change, accumulate=True).reshape(shape)
        return (changed, *outputs[1:]) if isinstance(outputs, tuple) else changed

    module = lm.arch.down_projs[layer]
    handle = (module if of == "mlp" else lm.arch.blocks[layer]).register_forward_hook(hook)
    reads = torch.tensor([(p, j) for p, prompt in enumerate(request.prompts) for j in prompt.reads], device=lm.device)
    try:
        with torch.no_grad():
            for step in range(settings.steps if request.noise else 1):
                base = full_logits(lm, batch, noise(step))[-1, request.essence.last_subject]
            base = log_distribution(base)
        site = _site(lm, module, *(torch.stack(each_draw).mean(0) for each_draw in seen))
        objective = Objective(request, settings, base)
        v0_norm = site.v0.norm()
        delta = torch.zeros_like(site.v0, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)
        value, steps = float("nan"), 0
        reached = reaches(lm, request, layer)
        for step in range(settings.steps if reached else 1):
            optimiser.zero_grad(set_to_none=True)
            logits = full_logits(lm, batch, noise(step))
            chosen = torch.cat([logits[reads[:, 0], reads[:, 1]], logits[-1, request.essence.last_subject][None]])[None]
            loss, least = objective(chosen, delta[None], v0_norm[None])
            value = float(loss.detach())
            if not reached or stops(request, settings.stop_loss, value):
                break
            loss.sum().backward()
            optimiser.step()
            steps += 1
            with torch.no_grad():
                clamp_(delta, settings.clamp_norm_factor * v0_norm)
            if settings.leave_when is not None and not request.minimise and float(least) >= settings.leave_when:
                break
    finally:
        handle.remove()
    return site, delta.detach(), value, steps
