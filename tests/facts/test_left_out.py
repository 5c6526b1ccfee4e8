"""Records that can't be used: each is left out with its reason, the others are read; too many of them stop the run."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.facts.choose import facts_to_frame, of_relations
from pipeline.facts.fact import Known, LeftOut, blank
from pipeline.facts.readers import read_fact_file
from pipeline.facts.reading import check_share, commonest, left_out_frame
from tests.facts.made import RELATIONS, ROWS, counterfact, flat, known_record, write_json, write_table, zsre

SOUND: dict[str, list[Any]] = {
    "counterfact": [counterfact(case_id=1), counterfact(case_id=2)],
    "counterfact_flat": [flat(case_id=1), flat(case_id=2)],
    "known_1000": [known_record(0, "Ada", "Danish"), known_record(1, "Cy", "Dutch")],
    "zsre": [zsre(), zsre(answers=["B. Rowe"])],
}


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != key}


LONG = "x" * 100_000
DEEP = json.loads("[" * 200 + "]" * 200)
BAD_RECORDS: list[tuple[str, Any, str]] = [
    ("counterfact", counterfact(prompt="In {}, the capital of {} is"), "prompt holds {} several times; once, where"),
    ("counterfact", counterfact(prompt="The river Loire flows into the"), "prompt holds {} nowhere; once, where"),
    ("counterfact", 3, "the record is a number; a JSON object is right"),
    ("counterfact", None, "the record is null; a JSON object is right"),
    ("counterfact", DEEP, "the record is a list; a JSON object is right"),
    ("counterfact", {"case_id": 1}, "the record lacks 'requested_rewrite'"),
    ("counterfact", without(counterfact(), "paraphrase_prompts"), "the record lacks 'paraphrase_prompts'"),
    ("counterfact", counterfact() | {"requested_rewrite": "x"}, "requested_rewrite is a text; an object is right"),
    ("counterfact", counterfact() | {"requested_rewrite": {}}, "requested_rewrite lacks 'relation_id'"),
    ("counterfact", counterfact(case_id=1), "its id is that of an earlier record"),
    ("counterfact", counterfact(case_id="a b"), "the fact_id must consist of letters"),
    ("counterfact", counterfact(case_id=None), "case_id is null; a whole number or a text is right"),
    ("counterfact", counterfact(case_id=True), "case_id is true; a whole number or a text is right"),
    ("counterfact", counterfact(case_id=1.5), "case_id is a number; a whole number or a text is right"),
    ("counterfact", counterfact(target_true={"str": " "}), "target_true is empty"),
    ("counterfact", counterfact(target_true={"str": "Baltic"}), "target_true and target_false are the same"),
    ("counterfact", counterfact(target_true="Atlantic"), "requested_rewrite.target_true is a text; an object is right"),
    ("counterfact", counterfact(target_true={"str": DEEP}), "target_true.str is a list; a text is right"),
    ("counterfact", counterfact(subject=""), "subject is empty"),
    ("counterfact", counterfact(subject="\u200b\u00a0"), "subject is empty"),
    ("counterfact", counterfact(subject="Lo\nire"), "subject holds the character U+000A"),
    ("counterfact", counterfact(subject="Lo\ud800ire"), "subject holds the character U+D800"),
    ("counterfact", counterfact(subject=LONG), "subject has more than 1000 characters"),
    ("counterfact", counterfact(prompt="{}" + LONG), "prompt has more than 10000 characters"),
    ("counterfact", counterfact(paraphrase_prompts=["a", LONG]), "prompt has more than 10000 characters"),
    ("counterfact", counterfact(paraphrase_prompts=[1]), "paraphrase_prompts holds a number; every entry must be"),
    ("counterfact", counterfact(paraphrase_prompts=None), "paraphrase_prompts is null; a list of texts or a text is"),
    ("counterfact", counterfact(neighborhood_prompts=["a\0"]), "neighborhood holds the character U+0000"),
    ("counterfact_flat", flat(subject="London"), "subject does not occur in its prompt; it must, letter by letter"),
    ("counterfact_flat", flat(subject=""), "subject is empty"),
    ("counterfact_flat", flat(ground_truth=""), "target_true is empty"),
    ("counterfact_flat", flat(target_new=5), "target_new is a number; a text is right"),
    ("known_1000", known_record(5, "Eva", "Danish", prompt="Hers is"), "subject does not occur in its prompt"),
    ("known_1000", known_record(5, "Eva", ""), "attribute is empty"),
    ("known_1000", known_record(5, "Eva", LONG), "target_true has more than 1000 characters"),
    ("known_1000", known_record(5, "Eva", "Danish", prompt="Eva and {} speak"), "prompt holds {} several times"),
    ("known_1000", known_record(5, "E" * 1001, "Danish"), "subject has more than 1000 characters"),
    ("known_1000", known_record(5, "Eva", "Danish", prompt=f"Eva{LONG}"), "prompt has more than 10000 characters"),
    ("known_1000", known_record(0, "Ada", "Danish"), "its id is that of an earlier record"),
    ("zsre", zsre(answers=[]), "answers is empty"),
    ("zsre", zsre(answers=["", "\u3164"]), "answers is empty"),
    ("zsre", zsre(subject=" "), "subject is empty"),
    ("zsre", zsre(subject="?", src="??"), "src is empty"),
    ("zsre", zsre(subject="nq", src="nq question: "), "src is empty"),
    ("zsre", without(zsre(), "src"), "the record lacks 'src'"),
    ("zsre", zsre(rephrase=7), "rephrase is a number; a text is right"),
]


@pytest.mark.parametrize(
    ("source", "bad", "says"), BAD_RECORDS, ids=[f"{i}-{s}-{says[:40]}" for i, (s, _, says) in enumerate(BAD_RECORDS)]
)
def test_a_bad_record_is_left_out_and_the_others_are_read(tmp_path: Path, source: str, bad: Any, says: str) -> None:
    first, last = SOUND[source]
    path = write_json(tmp_path, [first, bad, last])
    read = read_fact_file(source, path, 0)
    (one,) = read.left_out
    assert (one.record, one.file) == (1, str(path))
    assert one.reason.startswith(says)
    assert len(one.reason) < 150
    alone = read_fact_file(source, write_json(tmp_path, [first, last]), 0)
    texts = [(fact.text, fact.target_true, fact.paraphrases, fact.neighborhood) for fact in read.facts]
    assert texts == [(fact.text, fact.target_true, fact.paraphrases, fact.neighborhood) for fact in alone.facts]


BAD_ROWS = [
    ("lang\tAsgard", "the row has 2 cells; 3, tab separated, are right"),
    ("lang\tAsgard\t", "target_true is empty"),
    ("lang\t \u00a0\tNorse", "subject is empty"),
    ("lang\tNtown 0\tNorse", "the same fact stands in an earlier row"),
    ("tongue\tAsgard\tNorse", "its relation is not in relations.tsv"),
    ("lang\tAs\x00gard\tNorse", "subject holds the character U+0000"),
    ("", "the row is empty; only the file's end may be"),
    (f"lang\t{LONG}\tNorse", "subject has more than 1000 characters"),
    (f"lang\tAsgard\t{LONG}", "target_true has more than 1000 characters"),
]


@pytest.mark.parametrize(("row", "says"), BAD_ROWS, ids=[says[:40] for _, says in BAD_ROWS])
def test_a_bad_row_is_left_out_and_is_nobody_s_neighbor(tmp_path: Path, row: str, says: str) -> None:
    read = read_fact_file("embedded", write_table(tmp_path, rows=[*ROWS[:6], row, *ROWS[6:]]), 0)
    assert [(one.record, one.file, one.reason) for one in read.left_out] == [(6, str(tmp_path / "facts.tsv"), says)]
    assert sorted(read.facts, key=lambda fact: fact.fact_id) == sorted(
        read_fact_file("embedded", write_table(tmp_path), 0).facts, key=lambda fact: fact.fact_id
    )


def test_ids_that_two_relations_give_are_one_fact_s(tmp_path: Path) -> None:
    relations = [*RELATIONS, RELATIONS[1].replace("lang\t", "lang-Ntown\t", 1)]
    rows = [*ROWS, *(row.replace("lang\t", "lang-Ntown\t").replace("town ", "ville ") for row in ROWS)]
    rows[-1] = "lang-Ntown\t5\tNorse"  # the fact_id of Ntown 5 in lang
    read = read_fact_file("embedded", write_table(tmp_path, relations, [*rows, "lang-Ntown\tLville 5\tLatin"]), 0)
    assert [one.reason for one in read.left_out] == ["its id is that of an earlier record"]


# What is not seen is not there

BLANKS = ["", " ", "\t", "\n", "\u00a0", "\u200b", "\ufeff", "\u2060 \u3164", "\u00ad"]


@pytest.mark.parametrize("text", BLANKS, ids=ascii)
def test_blank_prompts_are_none(tmp_path: Path, text: str) -> None:
    assert blank(text)

    def prompts(source: str, record: dict[str, Any]) -> list[tuple[str, ...]]:
        (fact,) = read_fact_file(source, write_json(tmp_path, [record]), 0).facts
        return [fact.paraphrases, fact.neighborhood]

    assert prompts("zsre", zsre(rephrase=text, loc=text)) == [(), ()]
    assert prompts("zsre", zsre(rephrase=f"{text}?", loc=f"nq question: {text}")) == [(), ()]
    assert prompts("zsre", zsre(rephrase="nq question:", loc=f"nq question:{text}??")) == [(), ()]
    assert prompts("zsre", zsre(answers=[text, "Ada Rowe"]))[1]
    both = {"paraphrase_prompts": ["To the Loire", text], "neighborhood_prompts": [text, "The Douro is"]}
    assert prompts("counterfact", counterfact(**both)) == [("To the Loire",), ("The Douro is",)]
    assert prompts("counterfact", counterfact(paraphrase_prompts=text, neighborhood_prompts=[text])) == [(), ()]
    assert prompts("counterfact_flat", flat(rephrase_prompt=text, locality_prompt=text)) == [(), ()]
    assert prompts("counterfact_flat", flat(rephrase_prompt=[text], locality_prompt=[text, text])) == [(), ()]


@pytest.mark.parametrize("text", ["a", "?", "\u0301", "👩", "\ud800", "{}", "."])
def test_what_is_seen_is_not_blank(text: str) -> None:
    assert not blank(f"\u200b{text} ")


def test_a_blank_alternative_and_a_blank_optional_template(tmp_path: Path) -> None:
    read = read_fact_file("zsre", write_json(tmp_path, [zsre(), zsre(alt="\u200b")]), 0)
    assert [(one.fact_id, one.reason) for one in read.left_out] == [("zsre-1", "no alternative answer")]
    relations = [RELATIONS[0], RELATIONS[1].removesuffix("\t") + "\t\u200b"]
    facts = read_fact_file("embedded", write_table(tmp_path, relations), 0).facts
    assert {len(fact.paraphrases) for fact in facts} == {3}


@pytest.mark.parametrize("subject", ["Question", "Answer", "Q"])
def test_the_subject_is_looked_for_in_the_question_only(tmp_path: Path, subject: str) -> None:
    (fact,) = read_fact_file(
        "zsre", write_json(tmp_path, [zsre(subject=subject, src=f"Who wrote {subject}?")]), 0
    ).facts
    assert (fact.prompt, fact.relation) == ("Question: Who wrote {}? Answer:", "Who wrote {}?")


# The list, the table and the share


def file_with(bad: int, total: int, folder: Path) -> Path:
    records = [counterfact(case_id=i) for i in range(total)]
    for i in range(bad):
        records[i]["requested_rewrite"] = [{}, 1, counterfact(subject="")["requested_rewrite"]][0 if i < 3 else i % 3]
    return write_json(folder, records)


def test_the_list_of_records_left_out_is_read_back(tmp_path: Path) -> None:
    path = file_with(2, 10, tmp_path)
    read = read_fact_file("counterfact", path, 0)
    left_out_frame(read.left_out).to_csv(tmp_path / "left_out.csv", index=False)
    again = pd.read_csv(tmp_path / "left_out.csv")
    assert list(again.columns) == ["record", "source_file", "reason"]
    assert again.to_numpy().tolist() == [[i, str(path), "requested_rewrite lacks 'relation_id'"] for i in (0, 1)]
    assert left_out_frame([]).to_csv(index=False) == "record,source_file,reason\n"


def test_a_bad_record_has_no_row_among_the_facts_and_stays_with_any_relation(tmp_path: Path) -> None:
    read = of_relations(read_fact_file("counterfact", file_with(2, 10, tmp_path), 0), ["P403"])
    assert (len(read.facts), len(read.left_out)) == (8, 2)
    frame = facts_to_frame(read.facts, [Known(0.5, True, True)] * 8, [(True, "")] * 8, read.left_out)
    assert len(frame) == 8
    sound = LeftOut(record=3, file="f", reason="why", fact_id="a", relation="r", subject="s", prompt="{}", source="s")
    frame = facts_to_frame([], [], [], [*read.left_out, sound])
    assert frame[["fact_id", "drop_reason"]].to_numpy().tolist() == [["a", "why"]]


def test_one_record_in_twenty_may_be_left_out_and_no_more(tmp_path: Path) -> None:
    path = file_with(5, 100, tmp_path)
    check_share(path, read_fact_file("counterfact", path, 0), 0.05)
    path = file_with(8, 100, tmp_path)
    read = read_fact_file("counterfact", path, 0)
    check_share(path, read, 0.08)
    with pytest.raises(UserError) as error:
        check_share(path, read, 0.05)
    assert str(error.value) == (
        f"{path}: 8 of 100 records are broken, more than facts.max_left_out_share 0.05; a better file or a larger "
        "share is needed; why: requested_rewrite lacks 'relation_id' (5, first in record 0); requested_rewrite is a "
        "number; an object is right (2, first in record 4); subject is empty (1, first in record 5)"
    )
    with pytest.raises(UserError, match=r"none of 100 records"):
        read_fact_file("counterfact", file_with(100, 100, tmp_path), 0)


def test_sound_records_that_cannot_serve_are_listed_but_do_not_stop_the_run(tmp_path: Path) -> None:
    path = write_table(tmp_path, rows=[*ROWS, "lang\tBoth Town\tNorse", "lang\tBoth Town\tLatin", "lang\tBo\tNorse\t"])
    read = read_fact_file("embedded", path, 0)
    assert [(one.record, one.broken) for one in read.left_out] == [(12, False), (14, True)]
    check_share(path, read, 1 / 14)
    with pytest.raises(UserError, match=r"1 of 14 records are broken, .*; why: the row has 4 cells; .* \(1, first in"):
        check_share(path, read, 0.05)


def test_only_the_three_commonest_reasons_are_told_each_on_one_short_line() -> None:
    reasons = ["d", "a", "b", "b", "c", "c", "a", "e", "a"]
    records = [LeftOut(record=i, file="f", reason=reason) for i, reason in enumerate(reasons)]
    assert commonest(records) == (
        "a (3, first in record 1); b (2, first in record 2); c (2, first in record 4); and 2 other reasons"
    )
    assert commonest(records[:5]).endswith("; and 1 other reason")
    told = commonest([LeftOut(record=0, file="f", reason="object \u2028" + "x" * 500)])
    assert told == "object \\u2028" + "x" * 142 + "... (1, first in record 0)"
