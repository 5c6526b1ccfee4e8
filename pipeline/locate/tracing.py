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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pipeline.lm.forward import Recording, Suffix, climb, first, log_probabilities, record
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.noise import NoiseTable
from pipeline.lm.plain import Batch, outputs, target_probabilities
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

    noise: its `samples` draws are the corrupted run's batch.
    """

    def __init__(self, lm: LanguageModel, prompt: Prompt, noise: NoiseTable, samples: int):
        self.lm, self.prompt, self.samples = lm, prompt, samples
        self.noise_rows = [noise.rows(prompt, draw) for draw in range(samples)]
        self.table = noise.table
        self.targets = torch.tensor(prompt.target_ids, device=lm.device)
        self.packed = pack([prompt.ids[:-1]])
        self._plain_clean: dict[str, list[Tensor]] = {}

    @cached_property
    def clean(self) -> Recording:
        """The run without noise that the fast path takes its clean outputs from."""
        return record(self.lm, self.packed, attn=True)

    @cached_property
    def corrupt(self) -> Recording:
        """The run of all noise samples that the fast path goes on from."""
        ids = self.prompt.ids[:-1]
        noised = pack([ids], [[i if row >= 0 else -1 for i, row in enumerate(self.noise_rows[0][: len(ids)])]])
        spread = torch.zeros(self.samples, len(self.prompt.ids), self.table.shape[1])
        for draw, rows in enumerate(self.noise_rows):
            for i, row in enumerate(rows):
                if row >= 0:
                    spread[draw, i] = self.table[row]
        return record(self.lm, noised, noise=spread, attn=True)

    @torch.no_grad()
    def _probability(self, recording: Recording) -> float:
        hidden = recording.h[-1][:, list(self.prompt.reads)]
        logs = log_probabilities(self.lm, hidden, self.targets.expand(len(hidden), -1))
        return float(logs.double().sum(-1).exp().mean())

    def _suffix(self) -> tuple[Suffix, list[int], list[list[int]]]:
        """One segment for each token from the subject on; (suffix, first live token and read positions of each
        segment).
        """
        assert self.prompt.subject is not None
        n = len(self.packed)
        origin: list[int] = []
        starts, reads = [], []
        for t in range(self.prompt.subject[0], self.prompt.target_start):
            starts.append(len(origin))
            reads.append([len(origin) + r - t for r in self.prompt.reads])
            origin += range(t, n)
        index = torch.tensor(origin)
        segment = torch.tensor([s for s, start in enumerate(starts) for _ in range(n - index[start])])
        token = torch.arange(n)
        sees_frozen = token[None, :] < index[torch.tensor(starts)][segment][:, None]
        sees_live = (segment[:, None] == segment[None, :]) & (index[None, :] <= index[:, None])
        return Suffix(self.corrupt, index, sees_frozen, sees_live), starts, reads

    @torch.no_grad()
    def fast(self, module: str, window: int, rows: Callable[[Suffix], int] | None = None) -> Trace:
        """All tokens and layers of one module and window. rows: how many (layer, sample) rows may run at once."""
        lm, n_layers = self.lm, self.lm.n_layers
        p_clean, p_corrupt = self._probability(self.clean), self._probability(self.corrupt)
        suffix, starts, reads = self._suffix()
        per_pass = n_layers if rows is None else max(1, rows(suffix) // self.samples)
        restored = np.full((self.prompt.target_start, n_layers), p_corrupt)
        assert self.prompt.subject is not None
        for low in range(0, n_layers, per_pass):
            layers = range(low, min(n_layers, low + per_pass))
            hidden = self._climb(suffix, torch.tensor(starts, device=lm.device), module, window, layers)
            at = torch.tensor(reads, device=lm.device)  # (segments, target tokens)
            targets = self.targets.expand(len(hidden), len(reads), -1)
            logs = log_probabilities(lm, hidden[:, at], targets).double().sum(-1).exp()
            means = logs.reshape(len(layers), self.samples, len(reads)).mean(1)  # (layers, segments)
            restored[self.prompt.subject[0] :, layers.start : layers.stop] = means.T.cpu().numpy()
        return Trace(p_clean, p_corrupt, restored)

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
                whole = shaped.reshape(whole.shape)
                return (whole, *output[1:]) if isinstance(output, tuple) else whole

            return hook

        with ExitStack() as stack:
            for layer, target in enumerate(self._modules(module)):
                stack.callback(target.register_forward_hook(restore(layer)).remove)
            return climb(lm, suffix, spans[0].start + lag, join)

    @torch.no_grad()
    def plain_cell(self, module: str, window: int, token: int, layer: int) -> float:
        """The reference: one cell by whole forwards of all samples with hooks; the mean restored probability."""
        modules = self._modules(module)
        if module not in self._plain_clean:
            self._plain_clean[module] = outputs(self.lm, self.prompt, modules)

        def restore(at: int) -> Callable[..., Any]:
            value = self._plain_clean[module][at][token]

            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
                whole = first(output)
                shaped = whole.reshape(self.samples, -1, whole.shape[-1]).clone()
                shaped[:, token] = value.to(whole.device)
                whole = shaped.reshape(whole.shape)
                return (whole, *output[1:]) if isinstance(output, tuple) else whole

            return hook

        with ExitStack() as stack:
            for at in window_range(layer, window, self.lm.n_layers):
                stack.callback(modules[at].register_forward_hook(restore(at)).remove)
            return self._noised()

    def _noised(self) -> float:
        batch = Batch.of([self.prompt] * self.samples, self.lm.device)
        return float(target_probabilities(self.lm, batch, batch.noise(self.table, self.noise_rows)).mean())

    @cached_property
    def p_clean(self) -> float:
        """The target's probability, by the model's own forward."""
        return float(target_probabilities(self.lm, Batch.of([self.prompt], self.lm.device)))

    @cached_property
    def p_corrupt(self) -> float:
        """Its mean over the noise samples, by the model's own forward."""
        return self._noised()

    def plain(self, module: str, window: int) -> Trace:
        """The reference for every token from the subject on and every layer: nothing but the model's own forward."""
        assert self.prompt.subject is not None
        restored = np.full((self.prompt.target_start, self.lm.n_layers), self.p_corrupt)
        for token in range(self.prompt.subject[0], self.prompt.target_start):
            for layer in range(self.lm.n_layers):
                restored[token, layer] = self.plain_cell(module, window, token, layer)
        return Trace(self.p_clean, self.p_corrupt, restored)

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
