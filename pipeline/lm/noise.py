"""Gaussian noise on the subject's embeddings (Meng et al. 2022, section 2.1): a public function of seed, fact and
shape alone.

Drawn with NumPy's counter-based Philox generator, so that it is the same on every machine and device, whatever the
batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import Prompt, tokenize
from pipeline.seeds import derive


def subject_noise(seed: int, fact_id: str, samples: int, tokens: int, width: int) -> Tensor:
    """Standard normal draws (samples, tokens, width), float32; the first k samples do not depend on how many are
    drawn.
    """
    draws = np.empty((samples, tokens, width), dtype=np.float32)
    for sample in range(samples):
        key = derive(seed, "noise", fact_id, str(sample), f"{tokens}x{width}")
        draws[sample] = np.random.Generator(np.random.Philox(key)).standard_normal((tokens, width), dtype=np.float32)
    return torch.from_numpy(draws)


@torch.no_grad()
def embedding_sd(lm: LanguageModel, subjects: Iterable[str]) -> float:
    """Standard deviation over all entries of the input embeddings of the subjects' tokens (each subject once)."""
    ids = [i for s in dict.fromkeys(subjects) for i in tokenize(lm.tokenizer, f" {s}", add_bos=False).ids]
    embedded = lm.arch.embedding(torch.tensor(ids, device=lm.device))
    return float(embedded.double().std())


class NoiseTable:
    """The noise of one fact for prompts that may cut its subject into different numbers of tokens.

    `rows(prompt, draw)` says which row of `table` (M, width) each token of the prompt gets, -1 for none, as
    `prompts.pack` wants it. sd: standard deviation in units of the embeddings.
    """

    def __init__(self, seed: int, fact_id: str, sd: float, draws: int, width: int):
        self._seed, self._fact_id, self._sd, self._draws, self._width = seed, fact_id, sd, draws, width
        self._starts: dict[int, int] = {}
        self._parts: list[Tensor] = []

    def rows(self, prompt: Prompt, draw: int) -> list[int]:
        if prompt.subject is None:
            return [-1] * len(prompt.ids)
        first, end = prompt.subject
        tokens = end - first
        if tokens not in self._starts:
            self._starts[tokens] = sum(len(part) for part in self._parts)
            noise = self._sd * subject_noise(self._seed, self._fact_id, self._draws, tokens, self._width)
            self._parts.append(noise.reshape(-1, self._width))
        start = self._starts[tokens] + (draw % self._draws) * tokens
        return [start + i - first if first <= i < end else -1 for i in range(len(prompt.ids))]

    @property
    def table(self) -> Tensor:
        """(M, width): every row that `rows` has handed out so far."""
        return torch.cat(self._parts) if self._parts else torch.zeros(0, self._width)


def no_noise(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Noise rows for prompts that get none."""
    return [[-1] * len(prompt.ids) for prompt in prompts]
