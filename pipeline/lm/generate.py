"""Text that the model writes: continuations of many prompts at once, greedy or sampled, and text for statistics.

All of it is the model's own forward with its own cache. Nothing of a model folder's generation_config is used but which
tokens end a text: a repetition penalty there would make "greedy" mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
BATCH = 96  # pieces or prompts run at once
SHRINK = 0.75  # a batch lets go of the texts that have ended once no more than this share of it is left


def end_tokens(lm: LanguageModel) -> list[int]:
    """The tokens that end a text, as `model.generate` has them; none where the model names none."""
    settings = getattr(lm.model, "generation_config", None) or lm.arch.config
    ends = settings.eos_token_id
    return [] if ends is None else [int(i) for i in ends] if isinstance(ends, list | tuple) else [int(ends)]


@torch.no_grad()
def continuations(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    *,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
    top_k: int = 0,
    ends: bool = True,
    rows: Callable[[Sequence[int]], Any] = lambda group: None,
) -> list[list[int]]:
    """The next token ids of each prompt, at most `tokens` of them; a token that ends the text is the last one.

    temperature: 0 takes the likeliest token each time, else each text is drawn with its own of `seeds`, one a prompt.
    top_k: draw among so many of the likeliest tokens, 0 for all. ends: False goes on after a token that ends the text.
    rows: told, before each run of the model, which of `prompts` the rows of its batch go on from.
    A text depends on what else is in the batch through the rounding of its logits alone.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    last = end_tokens(lm) if ends else []
    for group in _groups(lm, prompts):
        generators = [torch.Generator().manual_seed(seeds[i]) for i in group] if temperature else []
        step, more = _padded([prompts[i] for i in group], lm.device)
        cache = None
        for left in range(tokens, 0, -1):
            rows(group)
            out = lm.model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1, **more)
            logits, cache = out.logits[:, -1].float().cpu(), out.past_key_values
            following = _drawn(logits / temperature, generators, top_k) if temperature else logits.argmax(-1)
            for i, token in zip(group, following.tolist(), strict=True):
                if not texts[i] or texts[i][-1] not in last:
                    texts[i].append(token)
            alive = [row for row, i in enumerate(group) if texts[i][-1] not in last]
            if left == 1 or not alive:
                break
            step = following[:, None].to(lm.device)
            if len(alive) <= SHRINK * len(group):
                kept = torch.tensor(alive, device=lm.device)
                cache.batch_select_indices(kept)
                step, more = step[kept], {name: value[kept] for name, value in more.items()}
                group, generators = [group[row] for row in alive], [generators[row] for row in alive if generators]
            if more:
                mask = torch.cat([more["attention_mask"], torch.ones_like(step)], 1)
                more = {"attention_mask": mask, "position_ids": more["position_ids"][:, -1:] + 1}
    return texts


def _groups(lm: LanguageModel, prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of prompts to run together: of like length, and of the same where the model may not bear padding."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    group: list[int] = []
    for i in order:
        if group and (len(group) == BATCH or (not lm.fast and len(prompts[i]) != len(prompts[group[0]]))):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Token ids (B, T), padded on the left, and what tells the model so; nothing is to tell of equal lengths."""
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    if bool(mask.all()):
        return ids.to(device), {}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return ids.to(device), {"attention_mask": mask.to(device), "position_ids": positions.to(device)}


def _drawn(logits: Tensor, generators: Sequence[torch.Generator], top_k: int = 0) -> Tensor:
    """One token (B,) of each row of logits (B, V), by where a uniform number of its own generator falls."""
    if 0 < top_k < logits.shape[-1]:
        chosen, tokens = logits.topk(top_k)
        return tokens.gather(1, _drawn(chosen, generators)[:, None])[:, 0]
    sums = logits.double().softmax(-1).cumsum(-1)
    uniform = torch.stack([torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators])
    return torch.searchsorted(sums, uniform * sums[:, -1:], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


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
    lows = range(0, pieces, BATCH)
    return torch.cat(
        [sample_batch(lm, low, min(BATCH, pieces - low), length, temperature, seed, progress, openings) for low in lows]
    )


@torch.no_grad()
def sample_batch(
    lm: LanguageModel,
    low: int,
    count: int,
    length: int,
    temperature: float,
    seed: int,
    progress: Callable[[int], Any] = lambda n: None,
    openings: Sequence[str] = OPENINGS,
) -> Tensor:
    """Pieces `low` to `low + count - 1` of `sample`, which are one batch: (count, length)."""
    starts = [lm.tokenizer(opening, add_special_tokens=False)["input_ids"][:OPENING] for opening in openings]
    bos = [lm.tokenizer.bos_token_id] if lm.add_bos else []
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
    return ids.cpu()
