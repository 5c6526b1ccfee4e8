"""Context prefixes: short texts before a prompt, over which ROME averages its key and its objective.

Meng et al. 2022, appendix E.5, sample them from the model, as is done here.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.lm.generate import sample
from pipeline.lm.model import LanguageModel
from pipeline.seeds import derive


def context_prefixes(
    lm: LanguageModel, lengths: Sequence[int], per_length: int, temperature: float, seed: int
) -> list[str]:
    """The strings to put before a prompt, the empty one first; the others are sampled text closed by ". "."""
    prefixes = [""]
    for length in lengths:
        if per_length:
            ids = sample(lm, per_length, length + lm.add_bos, temperature, derive(seed, "prefixes", str(length)))
            for row in ids[:, int(lm.add_bos) :].tolist():
                text = " ".join(lm.tokenizer.decode(row, skip_special_tokens=True).split())
                prefixes.append(f"{text}. ")
    return prefixes
