"""Who stands in for a subject: of the same relation and length, of another object, whoever else is there."""

from __future__ import annotations

import pytest

from pipeline.facts.fact import Fact
from pipeline.facts.known import fact_prompt
from pipeline.facts.partners import candidates, partner
from tests.lm.families import random_model


def fact(fact_id: str, subject: str, target: str, relation: str = "r") -> Fact:
    return Fact(
        fact_id=fact_id, relation=relation, subject=subject, prompt="The capital of {} is", target_true=target,
        target_false="Five",
    )  # fmt: skip


OWN = fact("own", "Anna", "Paris")
OTHERS = [
    fact("same-object", "Oslo", "Paris"), fact("other-relation", "Rome", "Oslo", relation="s"),
    fact("long", "Anna Berg Lund", "Rome"), fact("fits", "Rome", "Oslo"), fact("fits-too", "Peru", "Oslo"),
    fact("two-objects", "Lund", "Rome"), fact("two-objects-2", "Lund", "Paris"), OWN,
]  # fmt: skip


def test_only_other_subjects_of_other_objects_of_the_relation_are_tried() -> None:
    assert {other.fact_id for other in candidates(OWN, OTHERS, 0)} == {"long", "fits", "fits-too"}


def test_the_order_follows_from_seed_and_ids_alone() -> None:
    order = [other.fact_id for other in candidates(OWN, OTHERS, 0)]
    assert [other.fact_id for other in candidates(OWN, OTHERS[::-1], 0)] == order
    fewer = [other for other in OTHERS if other.fact_id != order[0]]
    assert [other.fact_id for other in candidates(OWN, fewer, 0)] == order[1:]
    assert len({tuple(other.fact_id for other in candidates(OWN, OTHERS, seed)) for seed in range(20)}) > 1


def test_who_stands_in_differs_in_the_subject_s_tokens_alone() -> None:
    lm = random_model("gpt2")
    true = fact_prompt(lm, OWN)
    start, end = true.subject or (0, 0)
    lengths = {other.fact_id: len(fact_prompt(lm, other).ids) for other in OTHERS}
    assert lengths["long"] > len(true.ids)
    found = partner(lm, OWN, candidates(OWN, OTHERS, 0))
    if found is None:
        pytest.fail("none fits")
    other, prompt = found
    assert other.fact_id in ("fits", "fits-too")
    assert prompt.ids[start:end] != true.ids[start:end]
    assert prompt.ids[:start] + prompt.ids[end:] == true.ids[:start] + true.ids[end:]
    assert partner(lm, OWN, [OTHERS[2]]) is None  # too long
    assert partner(lm, OWN, []) is None
