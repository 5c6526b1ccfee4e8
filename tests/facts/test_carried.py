"""The table of facts that the project carries."""

from collections import Counter, defaultdict

import pytest

from pipeline.facts.fact import Fact
from pipeline.facts.readers import read_facts
from tests.facts.made import CARRIED


@pytest.fixture(scope="module")
def carried() -> list[Fact]:
    return read_facts("embedded", CARRIED, 0)


def test_carried_table_is_large_enough(carried: list[Fact]) -> None:
    relations = Counter(f.relation for f in carried)
    assert len(relations) >= 12
    assert len(carried) >= 1200
    assert min(relations.values()) >= 50
    assert len({f.fact_id for f in carried}) == len(carried)


def test_carried_facts_have_paraphrases_and_neighbors(carried: list[Fact]) -> None:
    true = {(f.relation, f.text): f.target_true for f in carried}
    for f in carried:
        assert len({f.text, *f.paraphrases}) >= 4, f.fact_id
        assert all(f.subject in p for p in f.paraphrases), f.fact_id
        assert 5 <= len(set(f.neighborhood)) == len(f.neighborhood) <= 10, f.fact_id
        assert {true[f.relation, p] for p in f.neighborhood} == {f.target_true}, f.fact_id
        assert f.text not in f.neighborhood, f.fact_id


def test_carried_false_targets_are_other_objects_of_the_relation(carried: list[Fact]) -> None:
    objects: dict[str, set[str]] = defaultdict(set)
    correct: dict[tuple[str, str], set[str]] = defaultdict(set)
    for line in (CARRIED / "facts.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        relation, subject, target, also = line.split("\t")
        objects[relation].add(target)
        correct[relation, subject] |= {target, *also.split("|")}
    for f in carried:
        assert f.target_false in objects[f.relation] - correct[f.relation, f.subject], f.fact_id


def test_carried_relations_have_several_objects_and_facts_do_not_give_them_away(carried: list[Fact]) -> None:
    objects = defaultdict(set)
    for f in carried:
        objects[f.relation].add(f.target_true)
        assert f.target_true.casefold() not in f.subject.casefold(), f.fact_id
    assert min(map(len, objects.values())) >= 4
