"""Causal tracing (Meng et al. 2022, section 2.1): what restoring one module's clean output brings back.

Clean run: p. Corrupted run, noise on the subject's embeddings: p*, the mean over noise samples. Restored run: the
clean output of `module` put back at token t in the `window` blocks centred on l. effect(t, l) = p*(restored) - p*;
fraction = effect / (p - p*), floored at 0, with p taken as the best restored probability where that is higher (Hase
et al. 2023, section 4).

Restoring at token t changes nothing left of t and nothing below the window, and nothing at all before the subject,
so the fast path runs, for every (layer, sample) row, only the tokens from t on, all t side by side in one packed
row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pipeline.lm.forward import Recording, Suffix, as_was, climb, first, record
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.noise import NoiseTable
from pipeline.lm.plain import Batch, outputs, target_log_probabilities
from pipeline.lm.prompts import Prompt, pack


@dataclass(frozen=True)
class Trace:
    """One fact, module and window. restored: (T, L) mean probability with token t restored around layer l."""

    p_clean: float
    p_corrupt: float
    restored: np.ndarray

    @property
    def effect(self) -> np.ndarray:
        """Indirect effects (T, L), in units of probability."""
        return self.restored - self.p_corrupt

    @property
    def fraction(self) -> np.ndarray:
        """Fraction restored (T, L), in [0, 1]; 0 everywhere where noise did not lower the probability."""
        whole = max(self.p_clean, float(self.restored.max())) - self.p_corrupt
        return np.clip(self.effect / whole, 0, 1) if whole > 0 else np.zeros_like(self.restored)


def token_roles(prompt: Prompt) -> list[str]:
    """The role of each prompt token, as Meng et al. group them for average indirect effects (their figure 1)."""
    assert prompt.subject is not None
    start, end = prompt.subject
    roles = []
    for i in range(prompt.target_start):
        if i < start:
            role = "before_subject"
        elif i == end - 1:
            role = "last_subject"
        elif i < end:
            role = "first_subject" if i == start else "middle_subject"
        elif i == prompt.target_start - 1:
            role = "last_token"
        else:
            role = "first_subsequent" if i == end else "further"
        roles.append(role)
    return roles


class FactTrace:
    """One fact's prompt with its noise, from which any module and window is traced, by either path.

    noise: its `samples` draws are the corrupted run's batch. beside: the same prompt, token by token, with other
    targets, which are read off the same runs. metrics: the names of what is read (`_metrics`), the target's probability
    first.
    """

    metrics: tuple[str, ...] = ("probability",)

    def __init__(
        self, lm: LanguageModel, prompt: Prompt, noise: NoiseTable, samples: int, beside: tuple[Prompt, ...] = ()
    ):
        self.lm, self.prompt, self.prompts, self.samples = lm, prompt, (prompt, *beside), samples
        self.noise_rows = [noise.rows(prompt, draw) for draw in range(samples)]
        self.table = noise.table
        self.packed = pack([each.ids[:-1] for each in self.prompts])
        places = [[path[j] for j in each.reads] for path, each in zip(self.packed.where, self.prompts, strict=True)]
        self.reads = list(dict.fromkeys(j for own in places for j in own))  # packed tokens whose logits are read
        self._targets = [  # of each prompt: places in `reads`, and token ids
            (
                torch.tensor([self.reads.index(j) for j in own], device=lm.device),
                torch.tensor(each.target_ids, device=lm.device),
            )
            for own, each in zip(places, self.prompts, strict=True)
        ]
        self._plain_clean: dict[str, list[Tensor]] = {}

    @property
    def n_reads(self) -> int:
        """How many tokens' logits one row of a climb is read at, or fewer."""
        return len(self.reads) * self.prompt.target_start

    def _metrics(self, *logs: Tensor) -> Tensor:
        """What is traced, (M, ...), of the log-probabilities of each prompt's target."""
        return logs[0].exp()[None]

    def _corrupted(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids of a prompt and its target in the corrupted run, to which noise is added."""
        return prompt.ids

    @cached_property
    def clean(self) -> Recording:
        """The run without noise that the fast path takes its clean outputs from."""
        return record(self.lm, self.packed, attn=True)

    @cached_property
    def corrupt(self) -> Recording:
        """The run of all noise samples that the fast path goes on from."""
        ids = [self._corrupted(each)[:-1] for each in self.prompts]
        stem = [i if row >= 0 else -1 for i, row in enumerate(self.noise_rows[0][: self.prompt.target_start])]
        noised = pack(ids, [stem + [-1] * (len(each) - len(stem)) for each in ids])
        assert noised.where == self.packed.where
        spread = Batch.of([self.prompt] * self.samples, self.lm.device).noise(self.table, self.noise_rows)
        return record(self.lm, noised, noise=spread, attn=True)

    @torch.no_grad()
    def _read(self, hidden: Tensor) -> Tensor:
        """Metrics (M, ...), float64, of last-block outputs at `reads`, (..., reads, d)."""
        logits = self.lm.arch.logits(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        whole = logits.logsumexp(-1)
        logs = [(logits[..., place, token] - whole[..., place]).double().sum(-1) for place, token in self._targets]
        return self._metrics(*logs)

    def _whole(self, recording: Recording) -> np.ndarray:
        """Means over samples of the metrics of a recorded run: (M,)."""
        return self._read(recording.h[-1][:, self.reads]).mean(-1).cpu().numpy()

    def _suffix(self) -> tuple[Suffix, list[int], list[list[int]]]:
        """One segment for each token from the subject on, of it and all that comes after it under any target;
        (suffix, first live token and read positions of each segment).
        """
        assert self.prompt.subject is not None
        n, visible = len(self.packed), self.packed.visible
        origin: list[int] = []
        starts, reads = [], []
        # The prompt is the stem of the packed tree, so all packed tokens from t on come after t.
        for t in range(self.prompt.subject[0], self.prompt.target_start):
            starts.append(len(origin))
            reads.append([len(origin) + r - t for r in self.reads])
            origin += range(t, n)
        index = torch.tensor(origin)
        segment = torch.tensor([s for s, start in enumerate(starts) for _ in range(n - index[start])])
        before = torch.arange(n)[None, :] < index[torch.tensor(starts)][segment][:, None]
        sees_live = (segment[:, None] == segment[None, :]) & visible[index][:, index]
        return Suffix(self.corrupt, index, visible[index] & before, sees_live), starts, reads

    @torch.no_grad()
    def all_fast(self, module: str, window: int, rows: Callable[[Suffix], int] | None = None) -> dict[str, Trace]:
        """The trace of each metric at all tokens and layers, tokens before the subject at their corrupted value.

        rows: how many (layer, sample) rows may run at once.
        """
        lm, n_layers = self.lm, self.lm.n_layers
        clean, corrupt = self._whole(self.clean), self._whole(self.corrupt)
        suffix, starts, reads = self._suffix()
        per_pass = n_layers if rows is None else max(1, rows(suffix) // self.samples)
        restored = np.tile(corrupt[:, None, None], (1, self.prompt.target_start, n_layers))
        assert self.prompt.subject is not None
        sites = torch.tensor(starts, device=lm.device)
        at = torch.tensor(reads, device=lm.device)  # (segments, reads)
        for low in range(0, n_layers, per_pass):
            layers = range(low, min(n_layers, low + per_pass))
            found = self._read(self._climb(suffix, sites, module, window, layers)[:, at])  # (M, rows, segments)
            means = found.reshape(len(found), len(layers), self.samples, len(reads)).mean(2)
            restored[:, self.prompt.subject[0] :, layers.start : layers.stop] = means.transpose(1, 2).cpu().numpy()
        return self._traces(clean, corrupt, restored)

    def fast(self, module: str, window: int, rows: Callable[[Suffix], int] | None = None) -> Trace:
        """The probability's of `all_fast`."""
        return self.all_fast(module, window, rows)["probability"]

    def _modules(self, module: str) -> list[Any]:
        arch = self.lm.arch
        return {"mlp": arch.mlp_ends, "attn": arch.attns, "hidden": arch.blocks}[module]

    def _climb(self, suffix: Suffix, sites: Tensor, module: str, window: int, layers: range) -> Tensor:
        """Last-block outputs of the rows (layer, sample), layers outermost."""
        lm, n = self.lm, self.samples
        spans = [window_range(layer, window, lm.n_layers) for layer in layers]
        sample = torch.arange(n, device=lm.device)
        origin = suffix.origin[sites]
        # The attention of the window's first block must be run; MLP and hidden outputs can be put in after it.
        lag = 0 if module == "attn" else 1

        def join(at: int) -> tuple[Tensor, Tensor] | None:
            count = sum(span.start + lag == at for span in spans)
            if not count:
                return None
            h = suffix.live(self.corrupt.h[at])
            if module == "mlp":
                clean, corrupt = (r.mlp_out[at - 1][:, origin] for r in (self.clean, self.corrupt))
                put_back = lm.arch.mlp_to_residual
                h = h.index_add(1, sites, put_back(at - 1, clean).expand_as(corrupt) - put_back(at - 1, corrupt))
            elif module == "hidden":
                h = h.index_copy(1, sites, self.clean.h[at][:, origin].expand(n, -1, -1))
            return h.repeat(count, 1, 1), sample.repeat(count)

        def restore(layer: int) -> Callable[..., Any]:
            """A hook that puts the clean output back in the rows whose window holds `layer`."""
            rows = [r for r, span in enumerate(spans) if layer in span and span.start + lag <= layer]

            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
                if not rows:
                    return None
                whole = first(output)
                shaped = whole.reshape(-1, len(suffix.origin), whole.shape[-1])
                clean = {"mlp": self.clean.mlp_out, "attn": self.clean.attn_out}.get(module)
                value = (clean[layer] if clean else self.clean.h[layer + 1])[:, origin]
                part = slice(rows[0] * n, (rows[-1] + 1) * n)
                shaped[part, sites.to(whole.device)] = value.expand(len(rows) * n, -1, -1).to(whole.device)
                return as_was(output, shaped.reshape(whole.shape))

            return hook

        with ExitStack() as stack:
            for layer, target in enumerate(self._modules(module)):
                stack.callback(target.register_forward_hook(restore(layer)).remove)
            return climb(lm, suffix, spans[0].start + lag, join)

    @torch.no_grad()
    def plain_cells(self, module: str, window: int, token: int, layer: int) -> np.ndarray:
        """The reference: one cell's metrics (M,), by whole forwards of all samples with hooks."""
        modules = self._modules(module)
        if module not in self._plain_clean:
            self._plain_clean[module] = outputs(self.lm, self.prompt, modules)
        with ExitStack() as stack:
            for at in window_range(layer, window, self.lm.n_layers):
                put = self._put(token, self._plain_clean[module][at][token])
                stack.callback(modules[at].register_forward_hook(put).remove)
            return self._plain_readings(corrupted=True)

    def plain_cell(self, module: str, window: int, token: int, layer: int) -> float:
        """The probability's of `plain_cells`."""
        return float(self.plain_cells(module, window, token, layer)[0])

    def _put(self, token: int, value: Tensor) -> Callable[..., Any]:
        """A hook of a whole forward that puts value, (d,) or (samples, d), in the place of a module's output there."""

        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            whole = first(output)
            shaped = whole.reshape(len(self.prompts) * self.samples, -1, whole.shape[-1]).clone()
            shaped[:, token] = value.to(whole.device)
            return as_was(output, shaped.reshape(whole.shape))

        return hook

    @torch.no_grad()
    def _plain_readings(self, *, corrupted: bool) -> np.ndarray:
        """Means over samples of the metrics, by the model's own forward on whole prompts: (M,)."""
        samples = self.samples if corrupted else 1
        run = [replace(each, ids=self._corrupted(each)) if corrupted else each for each in self.prompts]
        batch = Batch.of([each for each in run for _ in range(samples)], self.lm.device)
        noise = batch.noise(self.table, self.noise_rows * len(run)) if corrupted else None
        logs = target_log_probabilities(self.lm, batch, noise).reshape(len(run), samples)
        return self._metrics(*logs).mean(-1).cpu().numpy()

    @cached_property
    def p_clean(self) -> float:
        """The target's probability, by the model's own forward."""
        return float(self._plain_readings(corrupted=False)[0])

    @cached_property
    def p_corrupt(self) -> float:
        """Its mean over the noise samples, by the model's own forward."""
        return float(self._plain_readings(corrupted=True)[0])

    def all_plain(self, module: str, window: int) -> dict[str, Trace]:
        """The reference for every token from the subject on and every layer: nothing but the model's own forward."""
        assert self.prompt.subject is not None
        clean, corrupt = self._plain_readings(corrupted=False), self._plain_readings(corrupted=True)
        restored = np.tile(corrupt[:, None, None], (1, self.prompt.target_start, self.lm.n_layers))
        for token in range(self.prompt.subject[0], self.prompt.target_start):
            for layer in range(self.lm.n_layers):
                restored[:, token, layer] = self.plain_cells(module, window, token, layer)
        return self._traces(clean, corrupt, restored)

    def plain(self, module: str, window: int) -> Trace:
        """The probability's of `all_plain`."""
        return self.all_plain(module, window)["probability"]

    def _traces(self, clean: np.ndarray, corrupt: np.ndarray, restored: np.ndarray) -> dict[str, Trace]:
        """Traces by metric, out of clean and corrupted readings (M,) and restored ones (M, T, L)."""
        each = zip(self.metrics, clean, corrupt, restored, strict=True)
        return {name: Trace(float(whole), float(least), cells) for name, whole, least, cells in each}

    def frame(self, fact_id: str, module: str, window: int, trace: Trace) -> pd.DataFrame:
        """data/trace.parquet's rows of one fact, module and window, tokens outermost."""
        tokens, layers = trace.restored.shape
        pieces = [self.lm.tokenizer.decode([i]) for i in self.prompt.ids[:tokens]]
        return pd.DataFrame(
            {
                "fact_id": fact_id,
                "module": module,
                "window": window,
                "token_index": np.repeat(np.arange(tokens), layers),
                "token": np.repeat(pieces, layers),
                "token_role": np.repeat(token_roles(self.prompt), layers),
                "layer": np.tile(np.arange(layers), tokens),
                "p_clean": trace.p_clean,
                "p_corrupt": trace.p_corrupt,
                "p_restored": trace.restored.ravel(),
                "effect": trace.effect.ravel(),
                "fraction": trace.fraction.ravel(),
            }
        )
