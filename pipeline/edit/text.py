"""The text over which second moments are taken: sampled from the model, a file, or a data set.

Published ROME takes Wikipedia (Meng et al. 2022, appendix E.5); text from the model needs no download.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.lm.generate import BATCH, sample
from pipeline.lm.model import LanguageModel
from pipeline.seeds import derive


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
