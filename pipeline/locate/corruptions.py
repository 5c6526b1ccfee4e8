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

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.facts.partners import fits
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.prompts import Prompt
from pipeline.locate.tracing import FactTrace
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


class CorruptedTrace(FactTrace):
    """One fact's prompt under one corruption, from which any module and window is traced, by either path.

    true: the prompt with the true object; false: the same prompt with the object that is read beside it. noise: of
    which `samples` draws are the corrupted run's batch: a NoiseTable, `Zeroing` or `Untouched`. stand_in: the prompt
    with another subject, for `replace`; it must fit (`pipeline.facts.partners.fits`).
    """

    metrics = METRICS

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
        # The false object after the very tokens of the prompt, whatever a tokenizer makes of the whole.
        self.false = replace(true, ids=true.ids[: true.target_start] + false.target_ids)
        super().__init__(lm, true, noise, samples, (self.false,))
        self.stand_in = true if stand_in is None else stand_in

    def _metrics(self, *logs: Tensor) -> Tensor:
        true, false = logs
        return torch.stack([true.exp(), true, true - false])

    def _corrupted(self, prompt: Prompt) -> tuple[int, ...]:
        return self.stand_in.ids[: prompt.target_start] + prompt.target_ids
