"""ROME (Meng et al. 2022, section 3.1): one rank-one edit of one block's MLP down-projection.

k* is the mean over context prefixes of the down-projection's input at the subject's last token; v* = v0 + delta,
where delta, added to the MLP's output there, minimises (their equation 4)

    NLL of the target + kl_factor * KL(edited || original) on "{subject} is a" + weight_decay * |delta| / |v0|^2

with |delta| <= clamp_norm_factor * |v0|; and W' = W + (v* - W k) uT / (uT k), u = C^-1 k* (equation 2). Fact
erasure minimises exp(-NLL) in place of the NLL (Hase et al. 2023, appendix). k is the key of the bare prompt, as in
the published code, or k* itself with `key: mean` (Gupta et al. 2024).

Two paths with the same mathematics: `fast` carries the edits of all layers through one resumed forward a step,
`plain` runs whole prompts through the whole model, one edit at a time, and is what tests hold the fast path to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.covariance import Whitener
from pipeline.editors.base import Edit, EditRequest, RankOne, failed, usable
from pipeline.errors import UserError
from pipeline.forward import Recording, Suffix, climb, record
from pipeline.models import LanguageModel
from pipeline.plain import Batch, full_logits
from pipeline.prompts import pack


@dataclass(frozen=True)
class RomeSettings:
    """The `rome` section of params.yaml for one problem; see there for what each value does."""

    steps: int
    learning_rate: float
    kl_factor: float
    weight_decay: float
    clamp_norm_factor: float
    key: str
    leave_when: float | None


@dataclass(frozen=True)
class Site:
    """What ROME needs of the unedited model at one block: keys (P, d_ff), v0 (d,), float32 or better."""

    keys: Tensor
    v0: Tensor


class _TargetLogsAndKL(torch.autograd.Function):
    """`target_logs_and_kl` with its gradient written out: three passes over the vocabulary where autograd makes ten."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        logs = logits.log_softmax(-1)
        reads = logs[:, :-1].gather(-1, targets.expand(len(logs), -1)[..., None])[..., 0]
        kl = (logs[:, -1].exp() * (logs[:, -1] - base)).sum(-1)
        ctx.save_for_backward(logs, targets, base, kl)
        return reads, kl

    @staticmethod
    def backward(ctx: Any, by_reads: Tensor, by_kl: Tensor) -> tuple[Tensor, None, None]:
        logs, targets, base, kl = ctx.saved_tensors
        grad = logs.exp()  # of logits z, p = softmax(z): d log p_t = 1_t - p, and d KL = p (log p - log base - KL)
        grad[:, -1] *= (logs[:, -1] - base - kl[:, None]) * by_kl[:, None]
        grad[:, :-1] *= -by_reads[..., None]
        rows = targets.expand(len(logs), -1)[..., None]
        grad[:, :-1].scatter_add_(-1, rows, by_reads[..., None])
        return grad, None, None


def target_logs_and_kl(logits: Tensor, targets: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (E, R) of targets (R,) after the first R of logits (E, R + 1, V), and (E,) the KL divergence
    of the last from the log-distribution base (V,).
    """
    reads, kl = _TargetLogsAndKL.apply(logits, targets, base)
    return reads, kl


class Objective:
    """Equation 4 for one request, whichever path computed the log-probabilities.

    base: (V,) log-distribution of the unedited model on the essence prompt.
    """

    def __init__(self, request: EditRequest, settings: RomeSettings, base: Tensor):
        self.minimise, self.settings, self.base = request.minimise, settings, base
        # Row p averages the read positions of prompt p: NLL is the mean over the target's tokens, as published.
        counts = [len(prompt.reads) for prompt in request.prompts]
        self.average = torch.zeros(len(counts), sum(counts), dtype=base.dtype, device=base.device)
        start = 0
        for p, count in enumerate(counts):
            self.average[p, start : start + count] = 1 / count
            start += count
        self.targets = torch.tensor([i for p in request.prompts for i in p.target_ids], device=base.device)

    def __call__(self, logits: Tensor, delta: Tensor, v0_norm: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each edit, (E,), and its least target probability over the prompts, (E,).

        logits: (E, reads + 1, V), the essence prompt's last. delta: (E, d). v0_norm: (E,).
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        reads, kl = target_logs_and_kl(logits, self.targets, self.base)
        nll = -(reads @ self.average.T)  # (E, P)
        fit = torch.exp(-nll) if self.minimise else nll
        decay = delta.norm(dim=-1) / v0_norm**2
        loss = fit.mean(-1) + self.settings.kl_factor * kl + self.settings.weight_decay * decay
        return loss, torch.exp(-nll.detach()).amin(-1)


class Rome:
    """The method. whiteners: block to the solver of its second moment. rows: edits optimised at once, None for all."""

    window = 1

    def __init__(
        self,
        settings: RomeSettings,
        whiteners: Mapping[int, Whitener | UserError],
        path: str = "fast",
        rows: Callable[[Suffix], int] | None = None,
    ):
        self.settings, self.whiteners, self.path, self.rows = settings, whiteners, path, rows

    def edit(self, lm: LanguageModel, request: EditRequest, layers: Sequence[int]) -> list[Edit]:
        """One edit for each of `layers`, in their order."""
        if self.path == "plain":
            return [self._marked(lm, request, self._plain(lm, request, layer)) for layer in layers]
        found: dict[int, Edit] = {}
        prepared = Prepared(lm, request)
        order = sorted(set(layers))
        size = self.rows(prepared.suffix) if self.rows else len(order)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            deltas, losses, steps = prepared.optimise(self.settings, chosen)
            for row, layer in enumerate(chosen):
                found[layer] = self._finish(layer, prepared.site(layer), deltas[row], losses[row], steps[row])
        return [self._marked(lm, request, found[layer]) for layer in layers]

    def _marked(self, lm: LanguageModel, request: EditRequest, edit: Edit) -> Edit:
        """`edit`, which says whether it could reach the answer."""
        return replace(edit, acts=reaches(lm, request, edit.layer))

    def _plain(self, lm: LanguageModel, request: EditRequest, layer: int) -> Edit:
        site, delta, loss, steps = plain_delta(lm, request, self.settings, layer)
        return self._finish(layer, site, delta, loss, steps)

    def _finish(self, layer: int, site: Site, delta: Tensor, loss: float, steps: int) -> Edit:
        """Equation 2: the rank-one update that maps the key to v0 + delta."""
        whitener = self.whiteners[layer]
        if isinstance(whitener, UserError):
            return failed(layer, f"failed: {whitener}")
        if not usable(delta) or loss != loss:
            return failed(layer, "failed: the loss is not a finite number")
        mean_key = site.keys.double().mean(0)
        u = whitener.solve(mean_key.to(whitener.factor.device)).to(mean_key.device)
        residual = delta.double()
        if self.settings.key == "mean":
            key = mean_key
            residual = residual + site.v0.double() - self._output(site, mean_key)
        else:
            key = site.keys[0].double()
        left = residual / (u @ key)
        if not (usable(left) and usable(u)):
            return failed(layer, "failed: the update is not finite")
        return Edit(layer, (RankOne(layer, left, u),), float(delta.double().norm()), loss, steps)

    def _output(self, site: Site, key: Tensor) -> Tensor:
        """W key + b; `site` carries the map."""
        assert isinstance(site, MappedSite)
        return site.output(key)


@dataclass(frozen=True)
class MappedSite(Site):
    """A site that can also say what the down-projection makes of another key."""

    output: Callable[[Tensor], Tensor]


def _site(lm: LanguageModel, layer: int, keys: Tensor, v0: Tensor) -> MappedSite:
    module = lm.arch.down_projs[layer]

    def output(key: Tensor) -> Tensor:
        with torch.no_grad():
            return module(key.to(lm.dtype)[None])[0].double().to(key.device)

    precise = torch.float64 if lm.dtype == torch.float64 else torch.float32
    return MappedSite(keys.to(precise), v0.to(precise), output)


class Prepared:
    """One recording of a request's prompts, and the suffix that its optimisation runs again and again."""

    def __init__(self, lm: LanguageModel, request: EditRequest):
        self.lm, self.request = lm, request
        prompts = [*request.prompts, request.essence]
        ends = [len(prompt.ids) - 1 for prompt in request.prompts] + [request.essence.last_subject + 1]
        noise_rows = [
            request.noise.rows(prompt, i) if request.noise and i < len(request.prompts) else [-1] * len(prompt.ids)
            for i, prompt in enumerate(prompts)
        ]
        self.packed = pack(
            [prompt.ids[:end] for prompt, end in zip(prompts, ends, strict=True)],
            [rows[:end] for rows, end in zip(noise_rows, ends, strict=True)],
        )
        noise = request.noise.table[None] if request.noise else None
        self.recording: Recording = record(lm, self.packed, noise=noise)
        where = self.packed.where
        live = sorted({i for p, prompt in enumerate(prompts) for i in where[p][prompt.last_subject :]})
        place = {index: s for s, index in enumerate(live)}
        self.suffix = Suffix.after(self.recording, live)
        device = lm.device
        self.site_index = torch.tensor(
            [where[p][prompt.last_subject] for p, prompt in enumerate(prompts)], device=device
        )
        # Two prompts may share their site (the essence prompt that begins as the bare one does): add delta there once.
        unique = sorted({place[int(i)] for i in self.site_index})
        self.sites = torch.tensor(unique, device=device)
        reads = [place[where[p][j]] for p, prompt in enumerate(request.prompts) for j in prompt.reads]
        self.reads = torch.tensor([*reads, place[where[-1][-1]]], device=device)

    def site(self, layer: int) -> MappedSite:
        recording = self.recording
        keys = recording.mlp_in[layer][0, self.site_index[:-1]]
        return _site(self.lm, layer, keys, recording.mlp_out[layer][0, self.site_index[0]])

    def _add(self, h: Tensor, layer: int, delta: Tensor) -> Tensor:
        """Outputs h (1, S, d) of block `layer` with `delta` added to its MLP's output, as recorded, at the sites."""
        arch = self.lm.arch
        if arch.mlp_norms[layer] is None:
            change = delta.to(h.dtype).expand(len(self.sites), -1)
        else:
            output = self.recording.mlp_out[layer][0, self.suffix.origin[self.sites]]
            change = arch.mlp_to_residual(layer, output + delta.to(h.dtype)) - arch.mlp_to_residual(layer, output)
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

    def optimise(self, settings: RomeSettings, layers: Sequence[int]) -> tuple[list[Tensor], list[float], list[int]]:
        """delta, last loss and steps of the edits at `layers` (ascending)."""
        with torch.no_grad():
            last = self.recording.h[-1][0, self.packed.where[-1][-1]]
            base = self.lm.arch.logits(last)
            base = (base if base.dtype == torch.float64 else base.float()).log_softmax(-1)
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
            optimiser.zero_grad(set_to_none=True)
            edited, changes = [layers[e] for e in active], [deltas[e] for e in active]
            if step == 0:  # all edits are the unedited model as yet, and one row has the gradients of all
                logits = self.logits_at_zero(edited, changes)
                loss, least = objective(logits, torch.zeros_like(changes[0])[None], v0_norms[active[0]][None])
            else:
                logits = self.logits(edited, changes)
                loss, least = objective(logits, torch.stack(changes), torch.stack([v0_norms[e] for e in active]))
            loss.sum().backward()
            optimiser.step()
            loss, least = loss.detach().expand(len(active)), least.expand(len(active))
            with torch.no_grad():
                for row, e in enumerate(active):
                    losses[e], steps[e] = float(loss[row]), steps[e] + 1
                    clamp_(deltas[e], settings.clamp_norm_factor * v0_norms[e])
            if settings.leave_when is not None and not self.request.minimise:
                done = [float(value) >= settings.leave_when for value in least]
                active = [e for e, gone in zip(active, done, strict=True) if not gone]
                if not active:
                    break
        return [delta.detach() for delta in deltas], losses, steps


def reaches(lm: LanguageModel, request: EditRequest, layer: int) -> bool:
    """Whether a change at the subject's last token in block `layer` can reach the target's probability at all.

    After the last block nothing is carried to later tokens. There equation 4 is least at delta = 0, and delta stays
    0; Adam would otherwise walk wherever the rounding of a gradient that is 0 points to.
    """
    return layer < lm.n_layers - 1 or any(prompt.last_subject in prompt.reads for prompt in request.prompts)


def clamp_(delta: Tensor, limit: Tensor) -> None:
    """In place: shorten `delta` to length `limit` where it is longer."""
    norm = delta.norm()
    if norm > limit:
        delta.mul_(limit / norm)


def plain_delta(
    lm: LanguageModel, request: EditRequest, settings: RomeSettings, layer: int
) -> tuple[MappedSite, Tensor, float, int]:
    """The reference: whole prompts through the whole model at every step; (site, delta, last loss, steps)."""
    batch = Batch.of([*request.prompts, request.essence], lm.device)
    noise = None
    if request.noise:
        rows = [request.noise.rows(prompt, i) for i, prompt in enumerate(request.prompts)]
        noise = batch.noise(request.noise.table, [*rows, [-1] * len(request.essence.ids)])
    sites = torch.tensor([p.last_subject for p in [*request.prompts, request.essence]])
    each = torch.arange(len(sites))
    seen: dict[str, Tensor] = {}
    delta: Tensor | None = None

    def hook(_module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        shape = output.shape
        output = output.reshape(len(sites), -1, shape[-1])
        if delta is None:
            keys = args[0].reshape(len(sites), -1, args[0].shape[-1])
            seen["keys"] = keys[each, sites].detach().to(lm.device)
            seen["output"] = output[each, sites].detach().to(lm.device)
            return None
        change = delta.to(output).expand(len(sites), -1)
        return output.index_put((each, sites), change, accumulate=True).reshape(shape)

    handle = lm.arch.down_projs[layer].register_forward_hook(hook)
    reads = torch.tensor([(p, j) for p, prompt in enumerate(request.prompts) for j in prompt.reads], device=lm.device)
    try:
        with torch.no_grad():
            base = full_logits(lm, batch, noise)[-1, request.essence.last_subject]
            base = (base if base.dtype == torch.float64 else base.float()).log_softmax(-1)
        site = _site(lm, layer, seen["keys"][:-1], seen["output"][0])
        objective = Objective(request, settings, base)
        v0_norm = site.v0.norm()
        delta = torch.zeros_like(site.v0, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)
        value, steps = float("nan"), 0
        reached = reaches(lm, request, layer)
        for _ in range(settings.steps if reached else 1):
            optimiser.zero_grad(set_to_none=True)
            logits = full_logits(lm, batch, noise)
            chosen = torch.cat([logits[reads[:, 0], reads[:, 1]], logits[-1, request.essence.last_subject][None]])[None]
            loss, least = objective(chosen, delta[None], v0_norm[None])
            if not reached:
                value = float(loss.detach())
                break
            loss.sum().backward()
            optimiser.step()
            value, steps = float(loss.detach()), steps + 1
            with torch.no_grad():
                clamp_(delta, settings.clamp_norm_factor * v0_norm)
            if settings.leave_when is not None and not request.minimise and float(least) >= settings.leave_when:
                break
    finally:
        handle.remove()
    return site, delta.detach(), value, steps
