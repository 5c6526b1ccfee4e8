"""Context prefixes differ in more than their endings, for every seed, and on every machine alike."""

import itertools
from typing import Any

import pytest

from pipeline.edit import contexts
from pipeline.edit.contexts import OPENINGS, context_prefixes, near_duplicates
from pipeline.lm.generate import sample
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel
from tests.conftest import TINY_MODEL
from tests.lm.families import random_model


@pytest.fixture(params=["gpt2", "llama", "gemma2", "tiny"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    if request.param != "tiny":
        return random_model(request.param)
    return load(str(TINY_MODEL), device="cpu")


@pytest.mark.parametrize("seed", range(4))
def test_no_two_prefixes_are_nearly_the_same(lm: LanguageModel, seed: int) -> None:
    for lengths, count in (((5, 10), 1), ((5, 10), 6), ((3,), 2)):
        empty, *others = context_prefixes(lm, lengths, count, 1.0, seed)
        assert empty == ""
        assert len(others) == count * len(lengths)
        assert all(text.endswith(". ") for text in others)
        assert [pair for pair in itertools.combinations(others, 2) if near_duplicates(*pair)] == []


def test_prefixes_are_those_of_their_seed(lm: LanguageModel) -> None:
    one, again, other = (context_prefixes(lm, (5, 10), 2, 1.0, seed) for seed in (0, 0, 1))
    assert one == again
    assert not set(one[1:]) & set(other[1:])
    assert context_prefixes(lm, (5, 10), 1, 1.0, 0)[1] == one[1]  # how many there are changes none of the first
    assert context_prefixes(lm, (5, 10), 0, 1.0, 0) == [""]


def test_openings_are_dealt_out_before_one_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_model("llama")
    monkeypatch.setattr(contexts, "near_duplicates", lambda one, other: False)
    dealt: list[str] = []

    def spy(*args: Any, openings: tuple[str, ...]) -> Any:
        dealt.extend(openings)
        return sample(*args, openings=openings)  # type: ignore[misc]

    monkeypatch.setattr(contexts, "sample", spy)
    count = len(OPENINGS) // 2 + 3
    orders = []
    for seed in range(3):
        dealt.clear()
        context_prefixes(lm, (5, 6), count, 1.0, seed)
        kept = list(dict.fromkeys(dealt))
        assert sorted(kept) == sorted(OPENINGS)
        orders.append(dealt[:4])
    assert len({tuple(order) for order in orders}) == 3  # the seed deals them, not the list's order


def test_a_model_that_says_one_thing_only_still_gets_its_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_model("llama")
    ids = lm.tokenizer("The capital of France", return_tensors="pt")["input_ids"]
    monkeypatch.setattr(contexts, "sample", lambda *args, **kwargs: ids)
    assert context_prefixes(lm, (5,), 3, 1.0, 0) == ["", *["The capital of France. "] * 3]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("The first step is", "The first time we", True),
        ("the FIRST, step", "The first. time we all went", True),
        ("He said that it was", "It was said that", True),
        ("Most people like tea", "In the house of Anna", False),
        ("In the house", "On the way home", False),
        ("", "On the way", True),
    ],
)
def test_near_duplicates(one: str, other: str, same: bool) -> None:
    assert near_duplicates(one, other) is near_duplicates(other, one) is same


def test_openings_begin_differently() -> None:
    assert not [pair for pair in itertools.combinations(OPENINGS, 2) if pair[0].lower() == pair[1].lower()]
    assert len(OPENINGS) >= 20  # the papers' prefixes
