"""Reverse prompts: of relations with a natural inverse, and of no other fact."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.facts.choose import KnownRule, choose, facts_to_frame, kept_facts
from pipeline.facts.fact import Known
from pipeline.facts.readers import read_facts
from tests.conftest import TINY_FACTS
from tests.facts.made import CARRIED, HEADER, RELATIONS, ROWS, counterfact, fact, write_json, write_table

BACK = "{} is spoken in"


def with_reverse(reverse: str) -> list[str]:
    return [f"{HEADER}\treverse", f"{RELATIONS[1]}\t{reverse}"]


def test_a_relation_s_reverse_prompt_is_that_of_its_facts(tmp_path: Path) -> None:
    facts = read_facts("embedded", write_table(tmp_path, with_reverse(BACK)), 0)
    assert {each.reverse for each in facts} == {BACK}
    assert facts[0].reversed("Norse") == "Norse is spoken in"
    plain = read_facts("embedded", write_table(tmp_path, RELATIONS), 0)
    assert plain == [replace(each, reverse="") for each in facts]  # the column decides nothing else
    assert read_facts("embedded", write_table(tmp_path, with_reverse("")), 0) == plain


@pytest.mark.parametrize(
    ("reverse", "says"),
    [
        ("spoken in", "'spoken in'; it must hold {} once"),
        ("{} and {} are spoken in", "it must hold {} once"),
        ("{} is" + " spoken" * 1500, "a template of 10505 characters"),
    ],
)
def test_a_reverse_prompt_that_cannot_serve(tmp_path: Path, reverse: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        read_facts("embedded", write_table(tmp_path, with_reverse(reverse), ROWS), 0)
    assert says in str(error.value)
    assert "relations.tsv, line 2: relation 'lang'" in str(error.value)


def test_a_fact_refuses_it_too() -> None:
    assert fact(reverse=BACK).reverse == BACK
    for reverse in ("no place", "{} twice {}", "{} ends in a space "):
        with pytest.raises(UserError, match=r"fact 'a': reverse is"):
            fact(reverse=reverse)


def test_the_table_of_facts_keeps_it(tmp_path: Path) -> None:
    facts = read_facts("embedded", write_table(tmp_path, with_reverse(BACK)), 0)
    known = [Known(0.5, True, True)] * len(facts)
    chosen = choose(facts, known, KnownRule("greedy", 36, 0.0), 3)
    frame = facts_to_frame(facts, known, chosen)
    assert set(frame["reverse"]) == {BACK}
    assert {each.reverse for each in kept_facts(frame)} == {BACK}


def test_other_facts_have_none(tmp_path: Path) -> None:
    assert {each.reverse for each in read_facts("embedded", TINY_FACTS, 0)} == {""}
    path = write_json(tmp_path, [counterfact()])
    assert [each.reverse for each in read_facts("counterfact", path, 0)] == [""]


def test_the_carried_relations_with_an_inverse_are_those_of_the_description() -> None:
    facts = read_facts("embedded", CARRIED, 0)
    found = {each.relation: each.reverse for each in facts if each.reverse}
    assert set(found) == {"P37", "P159", "P178"}
    told = " ".join((CARRIED / "SOURCE.md").read_text(encoding="utf-8").split())
    assert all(f'{relation} ("{reverse}")' in told for relation, reverse in found.items())
    for each in facts:  # the prompt may not give the answer away
        assert each.subject not in each.reversed(each.target_true)
