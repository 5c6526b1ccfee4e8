"""The fuzzer of the fact readers: it passes for a moment, notices what it is for, and what it found stays put right."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError, quoted
from pipeline.facts import readers as fact_readers
from pipeline.facts.fact import FactFile, LeftOut
from pipeline.facts.readers import read_fact_file
from tests.facts import broken
from tests.facts import fuzz as fuzz_facts
from tests.facts.made import fact


def test_a_short_run_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz_facts.fuzz(3, seed=0) == 0, capsys.readouterr().out
    told = capsys.readouterr().out
    assert all(f"{source} {outcome}" in told for source in broken.VALID for outcome in ("read", "refused"))


@pytest.mark.parametrize("source", broken.VALID)
def test_what_is_mutated_is_valid_before(source: str, tmp_path: Path) -> None:
    path = broken.VALID[source](tmp_path, random.Random(0))
    assert fuzz_facts.judge(source, path, 0) == ("read", "")


def _raises(path: Path, seed: int, records: int | None = None) -> FactFile:
    raise KeyError("subject")


def _says_little(path: Path, seed: int, records: int | None = None) -> FactFile:
    raise UserError("something is wrong")


def _sleeps(path: Path, seed: int, records: int | None = None) -> FactFile:
    time.sleep(5)
    raise UserError(str(path))


def _fills_memory(path: Path, seed: int, records: int | None = None) -> FactFile:
    bytearray(2 * fuzz_facts.BYTES)
    raise UserError(str(path))


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        (_raises, "KeyError: 'subject'"),
        (_says_little, "does not name the file"),
        (_sleeps, "more than 0.2 s"),
        (_fills_memory, "MemoryError"),
    ],
)
def test_a_bad_reader_is_a_finding(
    reader: Any, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz_facts, "SECONDS", 0.2)
    monkeypatch.setitem(fact_readers.READERS, "counterfact", reader)
    assert fuzz_facts.fuzz(5, seed=3, only=0) == 1
    out = capsys.readouterr().out
    assert told in out
    assert "--seed 3 --case 0" in out
    kept = Path(out.partition("file in ")[2].splitlines()[0])
    assert (kept / "facts.json").exists()
    shutil.rmtree(kept.parent)


SOUND = fact(source="zsre")


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (FactFile([], []), "no facts, and nobody says so"),
        (FactFile([fact(source="zsre", paraphrases=("Question: ? Answer:",))], []), "asks an empty question"),
        (
            FactFile([fact(source="zsre", neighborhood=("Question: nq question:? Answer:",))], []),
            "asks an empty question",
        ),
        (FactFile([SOUND], [LeftOut(record=0, file="f", reason="\u200b")]), "is left out for the reason"),
        (FactFile([SOUND], [LeftOut(record=0, file="f", reason="x", fact_id="a")]), "fact 'a' occurs twice"),
    ],
)
def test_a_bad_fact_is_a_finding(read: FactFile, told: str) -> None:
    assert told in next(fuzz_facts.faults(read))
    assert next(fuzz_facts.faults(FactFile([SOUND], [LeftOut(record=0, file="f", reason="x")])), "") == ""


def test_a_record_that_is_lost_or_listed_twice_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text("[1, 2, 3]")
    one, two = (LeftOut(record=i, file=str(path), reason="x") for i in (1, 2))
    assert next(fuzz_facts.miscounted(FactFile([SOUND], [one, two]), path), "") == ""
    assert "are not all records" in next(fuzz_facts.miscounted(FactFile([SOUND], [one]), path))
    assert "left out twice" in next(fuzz_facts.miscounted(FactFile([SOUND], [one, one]), path))


# What it found


def reason(source: str, record: dict[str, Any], folder: Path) -> str:
    """Why a file of this record alone is refused; it is also why the record is left out of a larger file."""
    path = folder / "facts.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_fact_file(source, path, 0)
    told = str(error.value)
    assert told.startswith(f"{path} holds no fact that can be edited; none of 1 records")
    assert told.isprintable()
    assert len(told) < 500
    return told.partition("is usable: ")[2].removesuffix(" (1, first in record 0)")


@pytest.mark.parametrize("key", ["known_id", "relation_id", "subject", "prompt", "attribute"])
def test_halves_of_surrogates_in_known_1000(key: str, tmp_path: Path) -> None:
    """Drawing the false target hashes id and attribute, which UTF-8 can't hold; a left-out one goes to a table."""
    told = reason("known_1000", broken.known(0) | {key: "Ada 0 \ud800"}, tmp_path)
    assert told.startswith("the fact_id must" if key == "known_id" else f"{key} holds the character U+D800")


@pytest.mark.parametrize("key", ["subject", "src", "answers"])
def test_halves_of_surrogates_in_a_question_that_is_left_out(key: str, tmp_path: Path) -> None:
    assert "U+D800" in reason("zsre", broken.zsre(0) | {"alt": "", key: "Watts \ud800 Hall"}, tmp_path)


@pytest.mark.parametrize("case_id", ["a\nb", "a\rb\x7f", "x" * 5000, "👩" * 300, 1.5, {"a": "\n"}, -(10**400)])
def test_an_odd_id_does_not_spoil_the_sentence(case_id: Any, tmp_path: Path) -> None:
    told = reason("counterfact", broken.counterfact(0) | {"case_id": case_id}, tmp_path)
    assert told.startswith(("the fact_id must consist of letters", "case_id is a number", "case_id is an object"))


@pytest.mark.parametrize("key", ["prompt", "subject", "ground_truth", "target_new", "rephrase_prompt"])
def test_very_long_text_is_refused_briefly(key: str, tmp_path: Path) -> None:
    text = "x" * 100_000
    record = broken.flat(0) | {key: text}
    record |= {"prompt": f"{text} Paris is in"} if key == "prompt" else {}
    record |= {"prompt": f"{text} is in"} if key == "subject" else {}
    assert "has more than 1000" in reason("counterfact_flat", record, tmp_path)


def test_many_and_strange_keys_are_told_briefly(tmp_path: Path) -> None:
    assert reason("zsre", {f"key\n{i}": "x" for i in range(500)}, tmp_path) == "the record lacks 'subject'"


def test_quoted() -> None:
    nest: list[Any] = []
    for _ in range(200_000):
        nest = [nest]
    assert quoted(nest) == "a list"
    assert quoted(10**5000) == "a int"
    assert quoted("a" * 90) == repr("a" * 80) + "..."
    assert quoted("a\n\ud800") == r"'a\n\ud800'"
    while nest:  # taken apart by hand: the interpreter would do it by recursion
        nest = nest.pop()
