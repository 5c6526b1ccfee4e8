"""Generation entropy and reference score against values worked out by hand, and where reference texts come from."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.facts.choose import facts_to_frame
from pipeline.facts.fact import Known, LeftOut
from pipeline.facts.readers import read_fact_file
from pipeline.measure.generation import (
    TERM,
    WORD,
    TfIdf,
    generation_entropy,
    ngram_entropy,
    read_snippets,
    reference_score,
    reference_texts,
    statements,
)
from tests.facts.made import CARRIED, fact

NAN = float("nan")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Oslo is a city.", ["Oslo", "is", "a", "city", "."]),
        ("Anna's well-known cafés, (3.5 km)!", ["Anna's", "well-known", "cafés", ",", "(", "3.5", "km", ")", "!"]),
        ("1,000 don\u2019t ...\n\tyes", ["1,000", "don\u2019t", ".", ".", ".", "yes"]),
        ("東京 is big-", ["東京", "is", "big", "-"]),
        (" \n", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert WORD.findall(text) == words


@pytest.mark.parametrize(
    ("text", "n", "bits"),
    [
        ("a b c d e", 2, 2.0),  # four bigrams, all different
        ("a b c d e", 3, math.log2(3)),
        ("a b a b a", 2, 1.0),  # ab ba ab ba
        ("a b a b a", 3, math.log2(3) - 2 / 3),  # aba bab aba: shares 2/3, 1/3
        ("a a a a a a", 2, 0.0),
        ("a b", 3, 0.0),  # no trigram
        ("", 2, 0.0),
        ("A a A", 2, 1.0),  # case counts, as published
    ],
)
def test_entropy_of_ngrams_by_hand(text: str, n: int, bits: float) -> None:
    assert ngram_entropy(text, n) == pytest.approx(bits, abs=1e-12)


def test_generation_entropy_by_hand() -> None:
    # The mean of 2/3 of the bigrams' and 4/3 of the trigrams' entropy is a third of one and two thirds of the other.
    first = 2.0 / 3 + 2 * math.log2(3) / 3
    second = 1.0 / 3 + 2 * (math.log2(3) - 2 / 3) / 3
    assert generation_entropy(["a b c d e"]) == pytest.approx(first)
    assert generation_entropy(["a b c d e", "a b a b a"]) == pytest.approx((first + second) / 2)
    assert generation_entropy(["no no no no no no", "a b c d e"]) == pytest.approx(first / 2)
    assert math.isnan(generation_entropy([]))


def test_terms_are_scikit_learns() -> None:
    assert TERM.findall("a big well-known isn't x2 3.14 _ 東京") == ["big", "well", "known", "isn", "x2", "14", "東京"]


def test_tf_idf_by_hand() -> None:
    weights = TfIdf(["cat dog dog", "cat bird", "cat"])
    ln = math.log
    assert weights.idf("cat") == 1.0  # in all three: ln(4 / 4) + 1
    assert weights.idf("dog") == pytest.approx(ln(4 / 2) + 1)  # in one text, however often
    assert weights.idf("fish") == pytest.approx(ln(4) + 1)  # in none
    dog, fish = ln(2) + 1, ln(4) + 1
    found = weights.cosine("Cat dog dog", "cat cat fish")
    assert found == pytest.approx(1 * 2 / (math.hypot(1, 2 * dog) * math.hypot(2, fish)))
    assert weights.cosine("cat dog", "dog cat") == pytest.approx(1)
    assert math.isnan(weights.cosine("a b", "cat"))


def test_reference_score_at_its_ends() -> None:
    weights = TfIdf(["Oslo is in Norway", "Rome is in Italy"])
    same = ["Oslo is in Norway.", "It is cold."]
    assert reference_score(same, same, weights) == pytest.approx(1)
    assert reference_score(["cold it IS", "oslo in norway is"], same, weights) == pytest.approx(1)  # order is nothing
    assert reference_score(["warm wine"], same, weights) == 0
    assert reference_score([], same, weights) == 0
    assert reference_score(["a ..."], same, weights) == 0
    assert math.isnan(reference_score(same, [], weights))
    assert math.isnan(reference_score(same, ["?"], weights))
    rare, common = (reference_score([f"{word} wine"], same, weights) for word in ("Oslo", "in"))
    assert 0 < common < rare < 1
    assert reference_score(["warm wine", "Oslo"], same, weights) == reference_score(["warm wine Oslo"], same, weights)


@pytest.fixture
def facts() -> pd.DataFrame:
    """Edited facts, one that is not known, one in another relation with the same object, one without a false target."""
    given = [
        fact("a", subject="Ann", paraphrases=("Home of Ann:", "Ann is from")),
        fact("b", subject="Bob", paraphrases=("Home of Bob:",)),
        fact("c", subject="Cid", target="Rome"),
        fact("d", relation="born", subject="Dan", prompt="Where was {} born? In"),
    ]
    known = Known(p_true=0.5, greedy_correct=True, within=True)
    chosen = [(True, ""), (False, "not known"), (True, ""), (True, "")]
    left_out = LeftOut(
        record=9, file="f", reason="r", fact_id="e", relation="r", subject="Eve", prompt="{} lives in",
        target_true="Oslo", source="s",
    )  # fmt: skip
    return facts_to_frame(given, [known] * 4, chosen, [left_out])


def test_reference_texts_are_of_other_subjects_with_the_new_object(facts: pd.DataFrame) -> None:
    assert statements(facts)[0] == ("Ann lives in Oslo.", "Home of Ann: Oslo.", "Ann is from Oslo.")
    about_oslo = ("Bob lives in Oslo.", "Home of Bob: Oslo.", "Eve lives in Oslo.")
    assert reference_texts(facts, "r", "Oslo", "Ann") == about_oslo
    assert reference_texts(facts, "r", "Oslo", "Cid") == (*statements(facts)[0], *about_oslo)
    assert reference_texts(facts, "born", "Oslo", "Cid") == ("Where was Dan born? In Oslo.",)
    assert reference_texts(facts, "r", "Rome", "Cid") == ()


def test_the_carried_facts_tell_objects_apart() -> None:
    """A text about the new object is more like the new object's references than like the old one's, for most facts."""
    given = read_fact_file("embedded", CARRIED, 0).facts
    known = Known(p_true=0.5, greedy_correct=True, within=True)
    facts = facts_to_frame(given, [known] * len(given), [(True, "")] * len(given))
    weights = TfIdf(text for texts in statements(facts) for text in texts)
    better = []
    for one in given[::40]:
        new, old = (
            reference_texts(facts, one.relation, target, one.subject) for target in (one.target_false, one.target_true)
        )
        if new and old:
            said = [f"{one.text} {one.target_false}."]
            better.append(reference_score(said, new, weights) > reference_score(said, old, weights))
    assert len(better) > 20
    assert sum(better) > 0.9 * len(better)


def entry(**changes: Any) -> dict[str, Any]:
    samples = [{"name": "Lyon", "text": "Lyon is French.", "target": "France"}, {"name": "Nice", "text": "Nice too."}]
    return {"relation_id": "P17", "target_id": "Q142", "samples": samples} | changes


def write(folder: Path, content: Any) -> Path:
    path = folder / "attribute_snippets.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_attribute_snippets(tmp_path: Path) -> None:
    other = entry(target_id="Q38", samples=[{"text": "Roma è in Italia."}])
    found = read_snippets(write(tmp_path, [entry(), other, entry(samples=[{"text": "More."}])]))
    assert found == {
        ("P17", "Q142"): ("Lyon is French.", "Nice too.", "More."),
        ("P17", "Q38"): ("Roma è in Italia.",),
    }


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[", "is not JSON"),
        ({}, "holds a JSON dict; a list of attribute snippets is right"),
        ([entry(), 7], "entry 1 is '7'; a JSON object with 'relation_id' is right"),
        ([entry(relation_id=None)], "entry 0: relation_id is 'None'; a text is right"),
        ([{"relation_id": "P1", "samples": []}], "entry 0: target_id is 'None'; a text is right"),
        ([entry(samples="x")], "entry 0: samples is 'x'; a list is right"),
        ([entry(samples=[{"text": "a"}, {"text": 3}])], "entry 0, sample 1: text is '3'; a text is right"),
        ([entry(samples=["a"])], "entry 0, sample 0 is 'a'; a JSON object with 'text' is right"),
    ],
)
def test_a_file_of_another_form(tmp_path: Path, content: Any, told: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        read_snippets(path)
    assert str(error.value).startswith(str(path))
    assert told in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read: No such file"):
        read_snippets(tmp_path / "none.json")
