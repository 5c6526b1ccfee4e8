"""New hidden states for many requests at once, at one block (Meng et al. 2023, section 4.1): MEMIT's z, batched.

All prompts of some requests are packed into one sequence in which no token sees another request's, so that one resumed
forward a step serves them all. The sum of their losses has for each request's delta the gradient of its own loss, and
Adam works entry by entry: the values are those that each request would get alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.edit.objective import Objective, clamp_, log_distribution, reaches, stops
from pipeline.edit.protocol import EditRequest
from pipeline.edit.value import TOKENS_AT_ONCE, Descent, packed_request
from pipeline.lm.forward import Recording, Suffix, climb, record
from pipeline.lm.memory import row_bytes
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import beside


def packs(
    lm: LanguageModel, requests: Sequence[EditRequest], draws: int, memory: int | None
) -> Iterator[list[EditRequest]]:
    """The requests in runs that are optimised together: of about as many tokens as run well at once, and no more than
    `memory` bytes allow.
    """
    most = TOKENS_AT_ONCE if lm.device.type == "cpu" else 4 * TOKENS_AT_ONCE
    if memory is not None:
        values = _Values(lm, requests[:1])
        each = row_bytes(lm, values.suffix, len(values.reads), gradient=True) / _tokens(requests[0])
        most = min(most, int(memory / each))
    part: list[EditRequest] = []
    for request in requests:
        if part and sum(map(_tokens, [*part, request])) * draws > most:
            yield part
            part = []
        part.append(request)
    yield part


def _tokens(request: EditRequest) -> int:
    return sum(len(prompt.ids) for prompt in request.prompts)


class _Values:
    """One recording of some requests' prompts."""

    def __init__(self, lm: LanguageModel, requests: Sequence[EditRequest]):
        self.lm, self.requests = lm, requests
        prompts = [p for request in requests for p in (*request.prompts, request.essence)]
        # Each request for itself: two of one subject must not share the token that their deltas are added to.
        self.packed = beside([packed_request(request) for request in requests])
        where = self.packed.where
        self.live = sorted({i for p, path in zip(prompts, where, strict=True) for i in path[p.last_subject :]})
        place = {index: s for s, index in enumerate(self.live)}
        self.recording = self._record(0)
        self.suffix = Suffix.after(self.recording, self.live)
        # Of each request: its sites (once each, though two prompts may share one), and where its logits are read.
        sites, owners = [], []
        reads: list[int] = []
        self.spans: list[tuple[int, int]] = []
        self.bare: list[int] = []
        at = 0
        for r, request in enumerate(requests):
            paths = where[at : at + len(request.prompts) + 1]
            own = [*request.prompts, request.essence]
            unique = sorted({path[p.last_subject] for path, p in zip(paths, own, strict=True)})
            sites += [place[i] for i in unique]
            owners += [r] * len(unique)
            first = len(reads)
            reads += [place[path[j]] for path, p in zip(paths, request.prompts, strict=False) for j in p.reads]
            reads.append(place[paths[-1][-1]])
            self.spans.append((first, len(reads)))
            self.bare.append(paths[0][request.prompts[0].last_subject])
            at += len(own)
        self.sites, self.owners, self.reads = (torch.tensor(x, device=lm.device) for x in (sites, owners, reads))

    def _record(self, step: int) -> Recording:
        tables = [r.noise.table(r.prompts, step) for r in self.requests if r.noise]
        return record(self.lm, self.packed, noise=torch.cat(tables)[None] if tables else None, mlp=False)

    def draw(self, step: int) -> None:
        """Record anew under the noise of `step`, where there is any."""
        if any(request.noise for request in self.requests):
            self.recording = self._record(step)
            self.suffix = Suffix.after(self.recording, self.live)

    def hidden(self, layer: int) -> Tensor:
        """(R, d) outputs of block `layer` at the bare prompts' sites, float32 or better."""
        h = self.recording.h[layer + 1][0, torch.tensor(self.bare, device=self.lm.device)]
        return h if h.dtype == torch.float64 else h.float()

    def logits(self, layer: int, deltas: Tensor) -> Tensor:
        """(1, reads, V) with each request's delta added to the outputs of block `layer` at its sites."""
        h = self.suffix.live(self.recording.h[layer + 1])
        h = h.index_add(1, self.sites, deltas[self.owners].to(h.dtype)[None])
        top = climb(self.lm, self.suffix, layer + 1, lambda at: (h, None) if at == layer + 1 else None)
        return self.lm.arch.logits(top[:, self.reads])


def new_values(
    lm: LanguageModel, requests: Sequence[EditRequest], settings: Descent, layer: int
) -> tuple[Tensor, Tensor]:
    """h (R, d), the outputs of block `layer` at the subjects' last tokens, and delta (R, d), so that z = h + delta.

    Where the subject is noised, h is a mean over the draws of all steps.
    """
    values = _Values(lm, requests)
    h = values.hidden(layer)
    if any(request.noise for request in requests):
        for step in range(1, settings.steps):
            values.draw(step)
            h = h + values.hidden(layer)
        h = h / settings.steps
        values.draw(0)
    with torch.no_grad():
        ends = values.reads[torch.tensor([end - 1 for _, end in values.spans], device=lm.device)]
        base = log_distribution(lm.arch.logits(values.suffix.live(values.recording.h[-1])[0, ends]))
    objectives = [Objective(request, settings, base[r]) for r, request in enumerate(requests)]
    delta = torch.zeros_like(h, requires_grad=True)
    norms = h.norm(dim=-1)
    optimiser = torch.optim.Adam([delta], lr=settings.learning_rate)
    active = [reaches(lm, request, layer) for request in requests]
    for step in range(settings.steps):
        if not any(active):
            break
        values.draw(step)
        optimiser.zero_grad(set_to_none=True)
        logits = values.logits(layer, delta)
        results = [
            objectives[r](logits[:, low:high], delta[r : r + 1], norms[r : r + 1]) if active[r] else None
            for r, (low, high) in enumerate(values.spans)
        ]
        for r, result in enumerate(results):
            active[r] &= result is None or not stops(requests[r], settings.stop_loss, float(result[0].detach()))
        losses = [result[0] for r, result in enumerate(results) if active[r] and result is not None]
        if not losses:
            break
        torch.cat(losses).sum().backward()
        before = delta.detach().clone()
        optimiser.step()
        with torch.no_grad():
            for r, result in enumerate(results):
                if not active[r]:  # Adam would go on by its momentum
                    delta[r] = before[r]
                    continue
                clamp_(delta[r], settings.clamp_norm_factor * norms[r])
                assert result is not None
                if settings.leave_when is not None and not requests[r].minimise:
                    active[r] = float(result[1]) < settings.leave_when
    return h, delta.detach()
