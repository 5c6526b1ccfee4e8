"""The plain reference forward: whole padded prompts through the whole model, as published code does it.

Slow and simple: it works for every model family, is the oracle that tests hold the resumed forward to, and the
baseline that benchmarks measure it against.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.lm.forward import added_to_embeddings, first
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import Prompt


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the right, where a causal model cannot see the padding; ids and mask (B, T)."""

    prompts: tuple[Prompt, ...]
    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Prompt], device: torch.device) -> Batch:
        length = max(len(prompt.ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            mask[row, : len(prompt.ids)] = 1
        return cls(tuple(prompts), ids.to(device), mask.to(device))

    def noise(self, table: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
        """(B, T, width): the noise of each token, from rows of a (M, width) table, -1 for none."""
        spread = torch.zeros(*self.ids.shape, table.shape[1], dtype=table.dtype)
        for b, prompt_rows in enumerate(rows):
            for t, row in enumerate(prompt_rows):
                if row >= 0:
                    spread[b, t] = table[row]
        return spread.to(self.ids.device)


def full_logits(lm: LanguageModel, batch: Batch, noise: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) of the model's own forward."""
    with added_to_embeddings(lm, noise):
        return lm.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits


@torch.no_grad()
def read_logits(lm: LanguageModel, prompts: Sequence[Prompt]) -> Tensor:
    """Logits (R, V) at the read positions of all prompts, one after the other, by the model's own forward."""
    logits = full_logits(lm, Batch.of(prompts, lm.device))
    return torch.cat([logits[b, list(prompt.reads)] for b, prompt in enumerate(prompts)])


@torch.no_grad()
def last_logits(lm: LanguageModel, ids: Sequence[int], noise: Tensor) -> Tensor:
    """Logits (B, V) after the token ids, for each of B samples of noise (B, T, width) on their embeddings."""
    prompt = Prompt(tuple(ids), len(ids), None, "")
    return full_logits(lm, Batch.of([prompt] * len(noise), lm.device), noise.to(lm.device))[:, -1]


@torch.no_grad()
def outputs(lm: LanguageModel, prompt: Prompt, modules: Sequence[Any]) -> list[Tensor]:
    """What each of `modules` gives for every token of the prompt, (T, d), in the model's own forward."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for module in modules:
            # A copy, as Falcon adds its attention to the MLP's output in place.
            stack.callback(module.register_forward_hook(lambda _m, _a, out: found.append(first(out).clone())).remove)
        full_logits(lm, Batch.of([prompt], lm.device))
    return [output.reshape(len(prompt.ids), -1) for output in found]


@torch.no_grad()
def target_log_probabilities(lm: LanguageModel, batch: Batch, noise: Tensor | None = None) -> Tensor:
    """Log-probability of each prompt's target, the sum over its tokens; (B,) float64."""
    logits = full_logits(lm, batch, noise)
    logs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
    return torch.stack(
        [logs[b, list(prompt.reads), list(prompt.target_ids)].double().sum() for b, prompt in enumerate(batch.prompts)]
    )


def target_probabilities(lm: LanguageModel, batch: Batch, noise: Tensor | None = None) -> Tensor:
    """Probability of each prompt's target, the product over its tokens; (B,) float64."""
    return target_log_probabilities(lm, batch, noise).exp()
