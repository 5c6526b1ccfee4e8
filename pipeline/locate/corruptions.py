"""Causal tracing under other corruptions than noise, read by other metrics than a probability (Zhang and Nanda 2023,
"Towards Best Practices of Activation Patching in Language Models", sections 2 and 3).

What becomes of the subject's tokens in the corrupted run:
gaussian: noise on their input embeddings, as in `pipeline.locate.tracing`; the mean over draws is taken.
zero: their input embeddings are 0; one run. Positions, where a model adds them to embeddings, stay.
replace: they are those of another subject of as many tokens (symmetric token replacement); one run.

What is read, of the true object's tokens a and another object's tokens b, each as it continues the prompt:
probability: p(a), the product over its tokens.
log_probability: log p(a), in nats.
logit_difference: log p(a) - log p(b), in nats. Where both are of one token this is the difference of their logits, as
both are read at one position; for longer ones it is the difference of sums over tokens, each given those before it.
b is what the corrupted prompt would be answered with: the other subject's object for replace; gaussian and zero have
none, and b is the object that an edit would put there (target_false).

effect(t, l) = m(restored) - m(corrupted), m the metric's mean over draws. fraction = effect / (m(clean) -
m(corrupted)), floored at 0, with m(clean) taken as the best restored m where that is higher, so that it stays in [0,
1]; 0 everywhere where the corruption did not lower m. For probabilities this is tracing's own; for logit differences it
is Zhang and Nanda's normalized one, but for the floor.

All metrics are read off one pass: the prompt is packed with both objects as a prefix tree, and a restoration's suffix
holds both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.facts.partners import fits
from pipeline.lm.forward import Recording, Suffix, first, record
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.noise import NoiseTable
from pipeline.lm.plain import Batch, full_logits, outputs
from pipeline.lm.prompts import Prompt, pack
from pipeline.locate.tracing import FactTrace, Trace
from pipeline.settings.fields import METRICS


class Zeroing(NoiseTable):
    """The one draw that takes the input embeddings of a prompt's subject to exactly 0: what they are, taken off."""

    def __init__(self, lm: LanguageModel):
        super().__init__(0, "", 0.0, 1, lm.embedding_width)
        self._embedding, self._device = lm.arch.embedding, lm.device

    @torch.no_grad()
    def rows(self, prompt: Prompt, draw: int) -> list[int]:
        assert draw == 0
        assert prompt.subject is not None
        start, (first_token, end) = sum(map(len, self._parts)), prompt.subject
        ids = torch.tensor(prompt.ids[first_token:end], device=self._device)
        self._parts.append(-self._embedding(ids).cpu())
        return [start + i - first_token if first_token <= i < end else -1 for i in range(len(prompt.ids))]


class Untouched(NoiseTable):
    """The one draw that adds nothing, where tokens are replaced."""

    def __init__(self, lm: LanguageModel):
        super().__init__(0, "", 0.0, 1, lm.embedding_width)

    def rows(self, prompt: Prompt, draw: int) -> list[int]:
        return [-1] * len(prompt.ids)


@dataclass(frozen=True)
class _Reads:
    """Where the two objects are read in packed tokens: `at`, and places in `at` with token ids of each object."""

    at: tuple[int, ...]
    true: tuple[Tensor, Tensor]
    false: tuple[Tensor, Tensor]

    def readings(self, logits: Tensor) -> Tensor:
        """METRICS of logits (..., len(at), V): (3, ...), float64."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        whole = logits.logsumexp(-1)
        sums = [
            (logits[..., place, token] - whole[..., place]).double().sum(-1) for place, token in (self.true, self.false)
        ]
        return readings(*sums)


def readings(true: Tensor, false: Tensor) -> Tensor:
    """METRICS of log-probabilities of the two objects, of any shape: (3, ...)."""
    return torch.stack([true.exp(), true, true - false])


class CorruptedTrace(FactTrace):
    """One fact's prompt under one corruption, from which any module and window is traced, by either path.

    true: the prompt with the true object; false: the same prompt with the object that is read beside it. noise: of
    which `samples` draws are the corrupted run's batch: a NoiseTable, `Zeroing` or `Untouched`. stand_in: the prompt
    with another subject, for `replace`; it must fit (`pipeline.facts.partners.fits`). What FactTrace gives is the
    probability's.
    """

    def __init__(
        self,
        lm: LanguageModel,
        true: Prompt,
        false: Prompt,
        noise: NoiseTable,
        samples: int,
        stand_in: Prompt | None = None,
    ):
        if stand_in is not None and not fits(true, stand_in):
            raise ValueError(f"{stand_in.text!r} does not stand in for {true.text!r} token by token")
        super().__init__(lm, true, noise, samples)
        # The false object after the very tokens of the prompt, whatever a tokenizer makes of the whole.
        self.false = replace(true, ids=true.ids[: true.target_start] + false.target_ids)
        self.stand_in = true if stand_in is None else stand_in
        self.packed = pack([prompt.ids[:-1] for prompt in (true, self.false)])

    @cached_property
    def corrupt(self) -> Recording:
        """The run of all samples, with the tokens that are put in place of the subject's."""
        start = self.prompt.target_start
        rows = [i if row >= 0 else -1 for i, row in enumerate(self.noise_rows[0][:start])]
        ids = [self._corrupted(prompt)[:-1] for prompt in (self.prompt, self.false)]
        packed = pack(ids, [rows + [-1] * (len(each) - start) for each in ids])
        assert packed.where == self.packed.where
        return record(self.lm, packed, noise=self._added(start), attn=True)

    def _corrupted(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt and its target in the corrupted run."""
        return self.stand_in.ids[: prompt.target_start] + prompt.target_ids

    def _added(self, length: int) -> Tensor:
        """What is added to the embeddings of the prompt's first tokens in each sample: (samples, length, width)."""
        spread = torch.zeros(self.samples, length, self.table.shape[1], dtype=self.table.dtype)
        for draw, rows in enumerate(self.noise_rows):
            for i, row in enumerate(rows[:length]):
                if row >= 0:
                    spread[draw, i] = self.table[row]
        return spread

    @cached_property
    def _reads(self) -> _Reads:
        places = [[self.packed.where[s][j] for j in prompt.reads] for s, prompt in enumerate((self.prompt, self.false))]
        at = tuple(dict.fromkeys(places[0] + places[1]))
        device = self.lm.device
        true, false = (
            (torch.tensor([at.index(j) for j in own], device=device), torch.tensor(prompt.target_ids, device=device))
            for own, prompt in zip(places, (self.prompt, self.false), strict=True)
        )
        return _Reads(at, true, false)

    @property
    def n_reads(self) -> int:
        """How many tokens' logits one row of a climb is read at."""
        return len(self._reads.at) * self.prompt.target_start

    def _suffix(self) -> tuple[Suffix, list[int], list[list[int]]]:
        """One segment for each token from the subject on, of it and all that comes after it under either object;
        (suffix, first live token and read positions of each segment).
        """
        assert self.prompt.subject is not None
        n, visible = len(self.packed), self.packed.visible
        origin: list[int] = []
        starts, reads = [], []
        # The prompt is the tree's stem, so all packed tokens from t on come after t.
        for t in range(self.prompt.subject[0], self.prompt.target_start):
            starts.append(len(origin))
            reads.append([len(origin) + r - t for r in self._reads.at])
            origin += range(t, n)
        index = torch.tensor(origin)
        segment = torch.tensor([s for s, start in enumerate(starts) for _ in range(n - index[start])])
        before = torch.arange(n)[None, :] < index[torch.tensor(starts)][segment][:, None]
        sees_live = (segment[:, None] == segment[None, :]) & visible[index][:, index]
        return Suffix(self.corrupt, index, visible[index] & before, sees_live), starts, reads

    @torch.no_grad()
    def _whole(self, recording: Recording) -> np.ndarray:
        """Means over samples of the METRICS of a recorded run: (3,)."""
        logits = self.lm.arch.logits(recording.h[-1][:, list(self._reads.at)])
        return self._reads.readings(logits).mean(-1).cpu().numpy()

    @torch.no_grad()
    def all_fast(self, module: str, window: int, rows: Callable[[Suffix], int] | None = None) -> dict[str, Trace]:
        """The trace of each metric, tokens before the subject at their corrupted value; rows: as of `fast`."""
        lm, n_layers = self.lm, self.lm.n_layers
        clean, corrupt = self._whole(self.clean), self._whole(self.corrupt)
        suffix, starts, reads = self._suffix()
        per_pass = n_layers if rows is None else max(1, rows(suffix) // self.samples)
        restored = np.tile(corrupt[:, None, None], (1, self.prompt.target_start, n_layers))
        assert self.prompt.subject is not None
        at = torch.tensor(reads, device=lm.device)  # (segments, reads)
        for low in range(0, n_layers, per_pass):
            layers = range(low, min(n_layers, low + per_pass))
            hidden = self._climb(suffix, torch.tensor(starts, device=lm.device), module, window, layers)
            found = self._reads.readings(lm.arch.logits(hidden[:, at]))  # (3, rows, segments)
            means = found.reshape(len(METRICS), len(layers), self.samples, len(reads)).mean(2)
            restored[:, self.prompt.subject[0] :, layers.start : layers.stop] = means.transpose(1, 2).cpu().numpy()
        return _traces(clean, corrupt, restored)

    def fast(self, module: str, window: int, rows: Callable[[Suffix], int] | None = None) -> Trace:
        return self.all_fast(module, window, rows)["probability"]

    @torch.no_grad()
    def _plain_readings(self, *, corrupted: bool) -> np.ndarray:
        """Means over samples of the METRICS, by the model's own forward on whole prompts: (3,)."""
        samples, start = self.samples if corrupted else 1, self.prompt.target_start
        prompts = [
            replace(prompt, ids=self._corrupted(prompt)) if corrupted else prompt
            for prompt in (self.prompt, self.false)
            for _ in range(samples)
        ]
        batch, noise = Batch.of(prompts, self.lm.device), None
        if corrupted:
            noise = torch.zeros(*batch.ids.shape, self.table.shape[1], dtype=self.table.dtype)
            noise[:, :start] = self._added(start).repeat(2, 1, 1)
            noise = noise.to(self.lm.device)
        logits = full_logits(self.lm, batch, noise)
        logs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        sums = [logs[b, list(p.reads), list(p.target_ids)].double().sum() for b, p in enumerate(batch.prompts)]
        true, false = torch.stack(sums).reshape(2, samples)
        return readings(true, false).mean(-1).cpu().numpy()

    @torch.no_grad()
    def plain_cell_of_all(self, module: str, window: int, token: int, layer: int) -> np.ndarray:
        """The reference: one cell's METRICS, by whole forwards of all samples and both objects with hooks: (3,)."""
        modules = self._modules(module)
        if module not in self._plain_clean:
            self._plain_clean[module] = outputs(self.lm, self.prompt, modules)

        def restore(at: int) -> Callable[..., Any]:
            value = self._plain_clean[module][at][token]

            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
                whole = first(output)
                shaped = whole.reshape(2 * self.samples, -1, whole.shape[-1]).clone()
                shaped[:, token] = value.to(whole.device)
                whole = shaped.reshape(whole.shape)
                return (whole, *output[1:]) if isinstance(output, tuple) else whole

            return hook

        with ExitStack() as stack:
            for at in window_range(layer, window, self.lm.n_layers):
                stack.callback(modules[at].register_forward_hook(restore(at)).remove)
            return self._plain_readings(corrupted=True)

    def plain_cell(self, module: str, window: int, token: int, layer: int) -> float:
        return float(self.plain_cell_of_all(module, window, token, layer)[0])

    def all_plain(self, module: str, window: int) -> dict[str, Trace]:
        """The reference for every token from the subject on and every layer: nothing but the model's own forward."""
        assert self.prompt.subject is not None
        clean, corrupt = self._plain_readings(corrupted=False), self._plain_readings(corrupted=True)
        restored = np.tile(corrupt[:, None, None], (1, self.prompt.target_start, self.lm.n_layers))
        for token in range(self.prompt.subject[0], self.prompt.target_start):
            for layer in range(self.lm.n_layers):
                restored[:, token, layer] = self.plain_cell_of_all(module, window, token, layer)
        return _traces(clean, corrupt, restored)

    def plain(self, module: str, window: int) -> Trace:
        return self.all_plain(module, window)["probability"]

    def _noised(self) -> float:
        return float(self._plain_readings(corrupted=True)[0])


def _traces(clean: np.ndarray, corrupt: np.ndarray, restored: np.ndarray) -> dict[str, Trace]:
    """Traces by metric, out of clean and corrupted readings (3,) and restored ones (3, T, L)."""
    return {name: Trace(float(clean[i]), float(corrupt[i]), restored[i]) for i, name in enumerate(METRICS)}
