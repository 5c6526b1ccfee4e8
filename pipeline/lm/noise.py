"""Gaussian noise on the subject's embeddings (Meng et al. 2022, section 2.1): a public function of stream, seed, fact
and shape alone.

Drawn with NumPy's counter-based Philox generator, so that it is the same on every machine and device, whatever the
batch. What is optimised under noise must not be scored on that noise, so there are three streams that share no draw:
"trace" (tracing, and the noised answer of tracing reversal), "edit" (`FreshNoise`) and "score" (fact forcing's scores).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import Prompt, tokenize
from pipeline.seeds import derive

Stream = Literal["trace", "edit", "score"]


def _draw(stream: Stream, seed: int, fact_id: str, number: Sequence[int], tokens: int, width: int) -> np.ndarray:
    """Draw `number` of a stream: standard normal (tokens, width), float32."""
    purpose = "noise" if stream == "trace" else f"{stream} noise"
    key = derive(seed, purpose, fact_id, *map(str, number), f"{tokens}x{width}")
    return np.random.Generator(np.random.Philox(key)).standard_normal((tokens, width), dtype=np.float32)


def subject_noise(seed: int, fact_id: str, samples: int, tokens: int, width: int, stream: Stream = "trace") -> Tensor:
    """Standard normal draws (samples, tokens, width), float32; the first k samples do not depend on how many are
    drawn.
    """
    draws = [_draw(stream, seed, fact_id, (sample,), tokens, width) for sample in range(samples)]
    return torch.from_numpy(np.stack(draws))


@torch.no_grad()
def embedding_sd(lm: LanguageModel, subjects: Iterable[str]) -> float:
    """Standard deviation over all entries of the input embeddings of the subjects' tokens (each subject once)."""
    ids = [i for s in dict.fromkeys(subjects) for i in tokenize(lm.tokenizer, f" {s}", add_bos=False).ids]
    embedded = lm.arch.embedding(torch.tensor(ids, device=lm.device))
    return float(embedded.double().std())


class NoiseTable:
    """The noise of one fact for prompts that may cut its subject into different numbers of tokens.

    `rows(prompt, draw)` says which row of `table` (M, width) each token of the prompt gets, -1 for none, as
    `prompts.pack` wants it; draw counts from 0 to `draws` - 1. sd: standard deviation in units of the embeddings.
    """

    def __init__(self, seed: int, fact_id: str, sd: float, draws: int, width: int, stream: Stream = "trace"):
        self._seed, self._fact_id, self._sd, self._draws, self._width = seed, fact_id, sd, draws, width
        self._stream = stream
        self._starts: dict[int, int] = {}
        self._parts: list[Tensor] = []

    def rows(self, prompt: Prompt, draw: int) -> list[int]:
        if not 0 <= draw < self._draws:
            raise ValueError(f"draw {draw} of a table of {self._draws}")
        if prompt.subject is None:
            return [-1] * len(prompt.ids)
        first, end = prompt.subject
        tokens = end - first
        if tokens not in self._starts:
            self._starts[tokens] = sum(len(part) for part in self._parts)
            noise = subject_noise(self._seed, self._fact_id, self._draws, tokens, self._width, self._stream)
            self._parts.append(self._sd * noise.reshape(-1, self._width))
        start = self._starts[tokens] + draw * tokens
        return [start + i - first if first <= i < end else -1 for i in range(len(prompt.ids))]

    @property
    def table(self) -> Tensor:
        """(M, width): every row that `rows` has handed out so far."""
        return torch.cat(self._parts) if self._parts else torch.zeros(0, self._width)


class FreshNoise:
    """The noise of one fact while it is edited: a new draw for each prompt and each optimization step, stream "edit".

    Prompts are known by their place in a request: prompt i at step s has the draw (s, i), whatever the other prompts
    and steps are. sd: standard deviation in units of the embeddings.
    """

    def __init__(self, seed: int, fact_id: str, sd: float, width: int):
        self._seed, self._fact_id, self._sd, self._width = seed, fact_id, sd, width

    def rows(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The row of `table` that each token of each prompt gets, -1 for none; the same at every step."""
        rows, start = [], 0
        for prompt in prompts:
            first, end = prompt.subject or (0, 0)
            rows.append([start + i - first if first <= i < end else -1 for i in range(len(prompt.ids))])
            start += end - first
        return rows

    def table(self, prompts: Sequence[Prompt], step: int) -> Tensor:
        """(M, width): the draws of all prompts at a step, counted from 0."""
        draws = [
            _draw("edit", self._seed, self._fact_id, (step, i), prompt.subject[1] - prompt.subject[0], self._width)
            for i, prompt in enumerate(prompts)
            if prompt.subject is not None
        ]
        return self._sd * torch.from_numpy(np.concatenate(draws))


def no_noise(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Noise rows for prompts that get none."""
    return [[-1] * len(prompt.ids) for prompt in prompts]
