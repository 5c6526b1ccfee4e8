"""Text for the second moments, and the context prefixes: by default sampled from the model itself, seeded.

Published ROME takes Wikipedia for the first and samples for the second (Meng et al. 2022, appendix E.5); text from
the model needs no download, and a file or a data set can be named instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models import LanguageModel
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
) -> Tensor:
    """Token ids (pieces, length) sampled from the model, each after one of OPENINGS (and BOS where the model has it
    on).

    The draw of a piece depends on the seed and the batch it falls in, batches being of fixed size. progress: told
    of tokens.
    """
    starts = [lm.tokenizer(opening, add_special_tokens=False)["input_ids"][:OPENING] for opening in OPENINGS]
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


def text_batches(
    lm: LanguageModel,
    source: str,
    tokens: int,
    length: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], Any],
) -> list[Tensor]:
    """Batches of token ids (B, length) that hold at least `tokens` tokens, or all there are in a shorter source.

    source: "model", the path of a UTF-8 text file, or "dataset:NAME" (its first split's `text` column, through the
    `datasets` library). Raises UserError for a source that is missing, empty or not text.
    """
    if source == "model":
        pieces = -(-tokens // length)
        return list(sample(lm, pieces, length, temperature, derive(seed, "text"), progress).split(BATCH))
    ids: list[int] = []
    for text in _texts(source):
        ids += lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) >= tokens + length:
            break
    whole = min(len(ids), max(tokens, length)) // length * length
    if not whole:
        raise UserError(f"statistics.text {source!r} holds {len(ids)} tokens, fewer than one piece of {length}")
    return list(torch.tensor(ids[:whole]).reshape(-1, length).split(BATCH))


def _texts(source: str) -> Any:
    if source.startswith("dataset:"):
        try:
            import datasets
        except ImportError as error:
            raise UserError(f"statistics.text {source!r} needs the `datasets` library: pip install datasets") from error
        name, _, config = source.removeprefix("dataset:").partition(":")
        try:
            stream = datasets.load_dataset(name, config or None, split="train", streaming=True)
            return (row["text"] for row in stream)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"statistics.text {source!r} could not be read: {error}") from error
    try:
        return [Path(source).read_text(encoding="utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"statistics.text {source!r} is not a readable UTF-8 text file: {error}") from error
