"""Text sampled from the model, seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.lm.model import LanguageModel
from pipeline.seeds import derive

# Beginnings of the sampled pieces: a model of running text goes on best from the first two words of a sentence.
OPENINGS = (
    "The first", "In the", "A new", "It is", "When the", "This is", "For example", "After the",
    "He was", "She was", "We can", "There are", "One of", "Most people", "During the", "On the",
)  # fmt: skip
OPENING = 2  # tokens of an opening that are used: as many for each, so that the pieces fit one batch
BATCH = 96  # pieces sampled at once


@torch.no_grad()
def sample(
    lm: LanguageModel,
    pieces: int,
    length: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], Any] = lambda n: None,
    openings: Sequence[str] = OPENINGS,
) -> Tensor:
    """Token ids (pieces, length) sampled from the model, each after one of `openings`, in turn (and BOS where the model
    has it on).

    The draw of a piece depends on the seed and the batch it falls in, batches being of fixed size. progress: told
    of tokens.
    """
    starts = [lm.tokenizer(opening, add_special_tokens=False)["input_ids"][:OPENING] for opening in openings]
    bos = [lm.tokenizer.bos_token_id] if lm.add_bos else []
    result = []
    for low in range(0, pieces, BATCH):
        count = min(BATCH, pieces - low)
        ids = torch.tensor([bos + starts[(low + i) % len(starts)] for i in range(count)], device=lm.device)
        generator = torch.Generator().manual_seed(derive(seed, "sample", str(low)))
        cache = None
        step = ids
        while ids.shape[1] < length:
            out = lm.model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            probabilities = (out.logits[:, -1].float() / temperature).softmax(-1).cpu()
            step = torch.multinomial(probabilities, 1, generator=generator).to(lm.device)
            ids = torch.cat([ids, step], 1)
            progress(count)
        result.append(ids.cpu())
    return torch.cat(result)
