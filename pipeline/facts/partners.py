"""Who may stand in for a fact's subject, token by token: another subject of the same relation, of as many tokens, whose
object is another (symmetric token replacement; Zhang and Nanda 2023, "Towards Best Practices of Activation Patching in
Language Models", section 2).

Only subjects of facts that the model knows are taken, so that the corrupted prompt has an answer of its own. Who it is
follows from the seed and the two facts' ids alone: further facts put no one in another's place but their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.facts.fact import Fact
from pipeline.facts.known import fact_prompt
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import Prompt
from pipeline.seeds import derive


def candidates(fact: Fact, known: Sequence[Fact], seed: int) -> tuple[Fact, ...]:
    """Facts of the same relation whose subject may stand in, but for its length, in the order in which to try them.

    A subject that also has this fact's object, as a country of two languages may, is none.
    """
    related = [other for other in known if other.relation == fact.relation]
    alike = {other.subject for other in related if other.target_true == fact.target_true} | {fact.subject}
    fit = [other for other in related if other.subject not in alike]
    return tuple(sorted(fit, key=lambda other: derive(seed, "partner", fact.fact_id, other.fact_id)))


def fits(prompt: Prompt, other: Prompt) -> bool:
    """Whether `other` differs from the prompt, target included, in the tokens of its subject alone, as many of them."""
    if prompt.subject is None or prompt.subject != other.subject:
        return False
    start, end = prompt.subject
    return prompt.ids[:start] == other.ids[:start] and prompt.ids[end:] == other.ids[end:] and prompt.ids != other.ids


def partner(lm: LanguageModel, fact: Fact, others: Sequence[Fact]) -> tuple[Fact, Prompt] | None:
    """The first of `others` (`candidates`) whose subject makes a prompt that differs in the subject's tokens alone, and
    that prompt, followed by the fact's own object; None where there is none.
    """
    true = fact_prompt(lm, fact)
    for other in others:
        prompt = fact_prompt(lm, replace(fact, subject=other.subject))
        if fits(true, prompt):
            return other, prompt
    return None
