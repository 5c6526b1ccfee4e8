"""What the unedited model knows: p(target_true) and its greedy answer for every fact (Hase et al. 2023, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.facts.fact import Fact, Known
from pipeline.lm import forward, plain
from pipeline.lm.generate import BATCH, continuations
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import Prompt, tokenize

PACK = 24  # facts packed into one sequence: enough for large matrix products, little enough for attention's square
TEXTS = BATCH  # facts of a group whose greedy text is asked for as well


def fact_prompt(lm: LanguageModel, fact: Fact, target: str | None = None) -> Prompt:
    """The fact's bare prompt, tokenized with `target` (target_true unless given)."""
    return tokenize(
        lm.tokenizer,
        fact.text,
        subject=fact.subject,
        subject_at=fact.subject_at,
        target=fact.target_true if target is None else target,
        add_bos=lm.add_bos,
    )


@torch.no_grad()
def measure(
    lm: LanguageModel,
    facts: Sequence[Fact],
    within_tokens: int | None,
    progress: Callable[[int], Any] = lambda n: None,
) -> list[Known]:
    """p_true and greedy_correct for each fact, in one packed forward of many; the head only where a probability is
    read.

    within_tokens: also whether the greedy continuation of that many tokens holds the target; None leaves it
    False. Facts are grouped in their given order, so that results do not depend on which of them were known from an
    earlier run.
    """
    result = []
    for low in range(0, len(facts), PACK):
        group = facts[low : low + PACK]
        prompts = [fact_prompt(lm, fact) for fact in group]
        targets = torch.tensor([t for prompt in prompts for t in prompt.target_ids], device=lm.device)
        logits = (forward if lm.fast else plain).read_logits(lm, prompts)
        logs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        right = (logits.argmax(-1) == targets).tolist()
        log_p = logs.gather(1, targets[:, None])[:, 0].double().tolist()
        start = 0
        for prompt in prompts:
            part = slice(start, start + len(prompt.target_ids))
            start = part.stop
            greedy = all(right[part])
            result.append(Known(float(torch.tensor(sum(log_p[part])).exp()), greedy, within=False))
        progress(len(group))
    if within_tokens is None:
        return result
    asked = [fact_prompt(lm, fact) for fact, entry in zip(facts, result, strict=True) if not entry.greedy_correct]
    texts = iter(greedy_texts(lm, asked, within_tokens))
    return [
        replace(entry, within=entry.greedy_correct or fact.target_true.strip() in next(texts))
        for fact, entry in zip(facts, result, strict=True)
    ]


def greedy_texts(lm: LanguageModel, prompts: Sequence[Prompt], tokens: int) -> list[str]:
    """The model's greedy text of `tokens` tokens after each bare prompt."""
    found = continuations(lm, [prompt.ids[: prompt.target_start] for prompt in prompts], tokens)
    return [str(lm.tokenizer.decode(ids, skip_special_tokens=True)) for ids in found]
