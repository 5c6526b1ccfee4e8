"""A made-up fact for the localizers, on any of the random models."""

from __future__ import annotations

from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.prompts import tokenize
from pipeline.locate.protocol import Case

SAMPLES = 3
MEMORY = 2**28


def case_of(
    lm: LanguageModel, true: str = "Oslo now", false: str = "Rome", memory: int = MEMORY, steps: int = 20
) -> Case:
    text, subject = "The capital of Anna Berg is", "Anna Berg"
    prompts = [tokenize(lm.tokenizer, text, subject=subject, target=each, add_bos=False) for each in (true, false)]
    return Case(
        true=prompts[0],
        false=prompts[1],
        noise=NoiseTable(0, "a", 0.5, SAMPLES, lm.embedding_width),
        samples=SAMPLES,
        windows=(1, 3),
        steps=steps,
        memory=memory,
    )
