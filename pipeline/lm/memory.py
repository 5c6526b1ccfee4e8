"""How many rows a pass may carry, from a budget in bytes instead of trial and error; and what happens when it was
too many.

The estimate counts what one row keeps alive at once; work that runs out of memory all the same is halved and goes on.
Where the system ends the process instead, nothing is left to catch: its successor works under `share_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psutil
import torch

from pipeline.lm.forward import Suffix
from pipeline.lm.model import LanguageModel
from pipeline.progress import say

T = TypeVar("T")
AUTO_SHARE = 0.5  # of what is free when the stage starts
# Bytes, on a CPU: batches of about a thousand tokens. Larger ones leave the caches and run at half the speed.
AUTO_LIMIT_CPU = {True: 1024**3, False: 96 * 1024**2}

_share = 1.0


@contextmanager
def share_of(share: float) -> Iterator[None]:
    """Within: budgets of this process are `share` of what they would be."""
    global _share
    before, _share = _share, share
    try:
        yield
    finally:
        _share = before


def budget(memory: int | None, device: torch.device, *, gradient: bool) -> int:
    """Bytes that batches may take: `memory`, or for None a share of what is free on the device.

    gradient: whether activations are kept for a backward pass.
    """
    if memory is None and device.type == "cuda":
        memory = int(AUTO_SHARE * torch.cuda.mem_get_info(device)[0])
    elif memory is None:
        memory = min(AUTO_LIMIT_CPU[gradient], int(AUTO_SHARE * psutil.virtual_memory().available))
    return max(1, int(_share * memory))


def row_bytes(lm: LanguageModel, suffix: Suffix, reads: int, *, gradient: bool) -> int:
    """What one row of a climb over `suffix` takes, in bytes.

    Each live token keeps about 8 vectors of the residual width and 4 of the MLP's at a time, each layer's keys and
    values are copied beside its own; with a gradient this is kept for every block above, without it for one. Logits
    are float32, with three copies of them at a time.
    """
    config = lm.arch.config
    item = torch.empty((), dtype=lm.dtype).element_size()
    live, frozen = len(suffix.origin), len(suffix.frozen)
    key_width = suffix.keys[0].shape[1] * suffix.keys[0].shape[3]
    heads = int(getattr(config, "num_attention_heads", suffix.keys[0].shape[1]))
    group = max(1, heads // suffix.keys[0].shape[1])
    inner = lm.arch.key_size(0) if lm.arch.has_down_projs else 4 * lm.arch.width  # of experts, amply
    tokens = live * (8 * lm.arch.width + 4 * inner) * item
    attention = 2 * (live + frozen) * key_width * (1 + group) * item + heads * live * (live + frozen) * item
    per_layer = tokens + attention
    return int(per_layer * (lm.n_layers if gradient else 2) + reads * _logit_bytes(lm))


def _logit_bytes(lm: LanguageModel) -> int:
    return 3 * int(lm.arch.config.vocab_size) * 4


def rows_within(lm: LanguageModel, memory: int, reads: int, *, gradient: bool) -> Callable[[Suffix], int]:
    """How many rows of a climb fit into `memory` bytes, at least one."""
    return lambda suffix: max(1, memory // row_bytes(lm, suffix, reads, gradient=gradient))


def head_rows(lm: LanguageModel, memory: int) -> int:
    """How many tokens' logits fit into `memory` bytes, at least one's."""
    return max(1, memory // _logit_bytes(lm))


def halving(work: Callable[[int], T], memory: int) -> T:
    """work(memory), again with half as much each time the device runs out; raises when a sixty-fourth is too much."""
    for attempt in range(7):
        try:
            return work(memory >> attempt)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error) or attempt == 6:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(f"out of memory with batches of {memory >> attempt:,} bytes; going on with half of it")
    raise AssertionError("unreachable")


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
