"""What edited models write about a fact's subject: texts to hear an edit by, and to take GE and RS of.

Meng et al. 2022, section 3.4 and the published code: prompts that name the subject and are not the edited one, each
gone on from once, every token drawn among the five likeliest, and on past a token that ends a text, so that all texts
are equally long (the entropy of n-grams grows with length). Their prompts are written for each relation; here the first
ones suit any subject, and the fact's paraphrases follow. "{subject} is a" is none of them: some methods hold on to
what follows it.

A draw has a seed of its own, from fact and prompt, so that texts before and after an edit, and by all methods, differ
by what the edit did. All edits write in one batch, a row for each edit and prompt (pipeline.measure.edited.by_row); the
plain path puts one edit after the other into the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from pipeline.edit.protocol import Edit
from pipeline.facts.fact import Fact
from pipeline.lm.generate import continuations
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import tokenize
from pipeline.measure.edited import applied, by_row
from pipeline.seeds import derive

ABOUT = ("{} is well known because", "The history of {}", "Most people think of {} as")
TOP_K = 5  # the likeliest tokens, among which each is drawn


def prompts_about(fact: Fact, count: int) -> tuple[str, ...]:
    """The first `count` prompts that texts about the fact's subject begin with; fewer where the fact has fewer."""
    return (*(text.replace("{}", fact.subject) for text in ABOUT), *fact.paraphrases)[:count]


def written(
    lm: LanguageModel, fact: Fact, edits: Sequence[Edit], prompts: Sequence[str], tokens: int, seed: int
) -> list[list[str]]:
    """What each of `edits` makes the model write after each of `prompts`, the prompt left out: [edit][prompt].

    tokens: how many each text has. An edit without updates writes what the unedited model does.
    """
    ids = [tokenize(lm.tokenizer, prompt, add_bos=lm.add_bos).ids for prompt in prompts]
    seeds = [_seed(seed, fact, i) for i in range(len(prompts))]
    draw = _draw(lm, tokens)
    if lm.fast:
        of = [e for e in range(len(edits)) for _ in prompts]
        with by_row(lm, edits) as tell:
            drawn = draw(ids * len(edits), seeds=seeds * len(edits), rows=lambda group: tell([of[i] for i in group]))
    else:
        drawn = []
        for edit in edits:
            with applied(lm, edit):
                drawn += draw(ids, seeds=seeds)
    texts = [_decoded(lm, start, more) for start, more in zip(ids * len(edits), drawn, strict=True)]
    return [texts[low : low + len(ids)] for low in range(0, len(texts), len(ids))] if ids else [[] for _ in edits]


def written_as_is(lm: LanguageModel, facts: Sequence[Fact], tokens: int, seed: int) -> list[str]:
    """What the weights as they are go on to write of each fact's subject after the first prompt about it, that with it.

    With one edit of the fact in the weights, what `written` gives for that edit and prompt.
    """
    prompts = [prompts_about(fact, 1)[0] for fact in facts]
    ids = [tokenize(lm.tokenizer, prompt, add_bos=lm.add_bos).ids for prompt in prompts]
    drawn = _draw(lm, tokens)(ids, seeds=[_seed(seed, fact, 0) for fact in facts]) if ids else []
    return [prompt + _decoded(lm, start, more) for prompt, start, more in zip(prompts, ids, drawn, strict=True)]


def _seed(seed: int, fact: Fact, prompt: int) -> int:
    return derive(seed, "writing", fact.fact_id, str(prompt))


def _draw(lm: LanguageModel, tokens: int) -> Callable[..., list[list[int]]]:
    return partial(continuations, lm, tokens=tokens, temperature=1.0, top_k=TOP_K, ends=False)


def _decoded(lm: LanguageModel, prompt: Sequence[int], more: Sequence[int]) -> str:
    """The text of `more` as it goes on from the prompt, without tokens that are no text."""
    shown = lm.tokenizer.decode(prompt, skip_special_tokens=True)
    whole: str = lm.tokenizer.decode([*prompt, *more], skip_special_tokens=True)
    return whole[len(shown) :]
