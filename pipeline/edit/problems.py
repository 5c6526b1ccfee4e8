"""The five editing problems of Hase et al. 2023 (their section 5): what each asks the model to say, and on which input.

error_injection      max p(o_false | s, r)          tracing_reversal    max p(o_noise | s, r)
fact_erasure         min p(o_true  | s, r)          fact_amplification  max p(o_true  | s, r)
fact_forcing         max p(o_true  | s_noise, r)

o_noise is the first word of the model's greedy continuation of s_noise, as published, or its first content word
(pipeline.words).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.edit.protocol import EditRequest
from pipeline.facts.fact import Fact
from pipeline.lm import forward, plain
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import FreshNoise, NoiseTable
from pipeline.lm.prompts import Prompt, tokenize
from pipeline.words import content, is_function_word


@dataclass(frozen=True)
class Problem:
    """target: "false", "noise" or "true", the object whose probability is to change. noised: the subject is noised."""

    name: str
    target: str
    minimise: bool = False
    noised: bool = False


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("error_injection", "false"),
        Problem("tracing_reversal", "noise"),
        Problem("fact_erasure", "true", minimise=True),
        Problem("fact_amplification", "true"),
        Problem("fact_forcing", "true", noised=True),
    )
}

MAX_NOISED_TOKENS = 8  # an answer that is no whole word by then is cut there
MAX_PASSED_OVER = 8  # function words; a continuation that has no other word by then has no answer


def noised_answer(lm: LanguageModel, prompt: Prompt, noise: NoiseTable, samples: int, kind: str = "first_word") -> str:
    """o_noise, from the model's greedy continuation of s_noise, probabilities averaged over the samples; "" for none.

    kind: first_word, or first_content_word, which passes over function words.
    """
    ids = prompt.ids[: prompt.target_start]
    if kind == "first_word":
        return _next_word(lm, prompt, ids, noise, samples)[0]
    for _ in range(MAX_PASSED_OVER + 1):
        word, ids = _next_word(lm, prompt, ids, noise, samples)
        if not word or not is_function_word(word):
            return word
    return ""


def _next_word(
    lm: LanguageModel, prompt: Prompt, start: tuple[int, ...], noise: NoiseTable, samples: int
) -> tuple[str, tuple[int, ...]]:
    """The next word of the greedy continuation of `start`, which is the prompt and whole words; and both as tokens.

    Tokens that begin no word (line breaks, punctuation) are passed over at its start, so that it can be a target; so
    are, after a word, those that would lengthen it.
    """
    ids = list(start)
    shown = lm.tokenizer.decode(ids)
    after_word = len(ids) > prompt.target_start
    answer = ""
    for _ in range(MAX_NOISED_TOKENS):
        current = Prompt((*ids,), len(ids), prompt.subject, prompt.text)
        rows = [noise.rows(current, draw) for draw in range(samples)]
        table = torch.stack(
            [
                torch.stack([noise.table[r] if r >= 0 else torch.zeros(noise.table.shape[1]) for r in row])
                for row in rows
            ]
        )
        mean = (forward if lm.fast else plain).last_logits(lm, ids, table).float().softmax(-1).mean(0)
        for token in mean.topk(50).indices.tolist():
            piece = lm.tokenizer.decode([*ids, token])[len(shown) :]
            if answer and (not piece.startswith(answer) or not piece[len(answer) :].isalnum()):
                return answer.strip(), (*ids,)  # the greedy token ends the word
            if piece.strip()[:1].isalnum() and (answer or not after_word or piece[:1].isspace()):
                break
        else:
            return answer.strip(), (*ids,)
        ids.append(token)
        answer = piece
    return answer.strip(), (*ids,)


def same_answer(o_noise: str, target_true: str) -> bool:
    """Whether o_noise, which is one word, is how target_true begins, function words left out or not: then the noised
    model still says the fact.
    """
    return any(
        whole.startswith(o_noise) and not whole[len(o_noise) :][:1].isalnum()
        for whole in (target_true, content(target_true))
    )


def objects(problem: Problem, fact: Fact, o_noise: str | None) -> tuple[str, str]:
    """(target, baseline): the object the problem is about, and the one it is compared with."""
    if problem.target == "false":
        return fact.target_false, fact.target_true
    if problem.target == "noise":
        assert o_noise is not None
        return o_noise, fact.target_true
    return fact.target_true, fact.target_false


def edit_request(
    lm: LanguageModel,
    problem: Problem,
    fact: Fact,
    target: str,
    prefixes: Sequence[str],
    noise: FreshNoise | None,
    baseline: str = "",
) -> EditRequest:
    """The fact's prompt after each of `prefixes`, and "{subject} is a", tokenized for an editor.

    baseline: the object that the target is compared with, for methods that need both; "" for none.
    """

    def prompts(followed_by: str) -> tuple[Prompt, ...]:
        return tuple(
            tokenize(
                lm.tokenizer,
                prefix + fact.text,
                subject=fact.subject,
                subject_at=len(prefix) + fact.subject_at,
                target=followed_by,
                add_bos=lm.add_bos,
            )
            for prefix in prefixes
        )

    essence = tokenize(lm.tokenizer, f"{fact.subject} is a", subject=fact.subject, subject_at=0, add_bos=lm.add_bos)
    baselines = prompts(baseline) if baseline else ()
    return EditRequest(fact.fact_id, prompts(target), essence, noise, problem.minimise, problem.name, baselines)
