"""Facts: every reader on small files, the carried table's promises, the choice of known facts, bad input."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.facts.choose import KnownRule, choose, facts_to_frame, kept_facts, trim
from pipeline.facts.fact import Fact, Known
from pipeline.facts.readers import read_fact_file, read_facts
from pipeline.tables import FACTS

CARRIED = Path(__file__).parents[2] / "data" / "facts" / "wikidata"
HEADER = "relation\tname\tprompt\tparaphrase_1\tparaphrase_2\tparaphrase_3\tparaphrase_4"
RELATIONS = [HEADER, "lang\tlanguage\t{} speaks\tIn {} one hears\tTo visit {}, learn\tSchools in {} teach\t"]
ROWS = [
    f"lang\t{name}\t{tongue}" for tongue in ("Norse", "Latin") for name in (f"{tongue[0]}town {i}" for i in range(6))
]


def write_table(folder: Path, relations: list[str] = RELATIONS, rows: list[str] = ROWS) -> Path:
    (folder / "relations.tsv").write_text("\n".join(relations) + "\n", encoding="utf-8")
    lines = ["relation\tsubject\ttarget_true", *rows]
    (folder / "facts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_json(folder: Path, content: Any) -> Path:
    path = folder / "facts.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def counterfact(**changes: Any) -> dict[str, Any]:
    rewrite = {
        "prompt": "The river {} flows into the",
        "relation_id": "P403",
        "target_new": {"str": "Baltic", "id": "Q2"},
        "target_true": {"str": "Atlantic", "id": "Q1"},
        "subject": "Loire",
    }
    record = {
        "case_id": 7,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": ["Two lines.\nThe Loire ends in the", "Loire's mouth is on the"],
        "neighborhood_prompts": ["The river Douro flows into the"],
        "generation_prompts": ["Loire is"],
    }
    rewrite.update({k: v for k, v in changes.items() if k in rewrite})
    record.update({k: v for k, v in changes.items() if k not in rewrite})
    return record


def flat(**changes: Any) -> dict[str, Any]:
    record = {
        "case_id": 3,
        "prompt": "Parisian cafes are found in Paris, the capital of",
        "subject": "Paris",
        "ground_truth": "France",
        "target_new": "Spain",
        "rephrase_prompt": "To reach Paris, travel to",
        "locality_prompt": "Lyon is in",
        "locality_ground_truth": "France",
    }
    return record | changes


def known_record(number: int, subject: str, attribute: str, relation: str = "P103", **changes: Any) -> dict[str, Any]:
    record = {
        "known_id": number,
        "subject": subject,
        "attribute": attribute,
        "template": "The tongue of {}",
        "prediction": f" {attribute}.",
        "prompt": f"The tongue of {subject} is",
        "relation_id": relation,
    }
    return record | changes


def zsre(**changes: Any) -> dict[str, Any]:
    record = {
        "subject": "Watts Hall",
        "src": "Who was the architect of Watts Hall?",
        "pred": "Someone",
        "rephrase": "Which architect drew Watts Hall?",
        "alt": "Bauhaus",
        "answers": ["Ada Rowe", "A. Rowe"],
        "loc": "nq question: who wrote the oldest map",
        "loc_ans": "Anon",
        "cond": "a >> b || c",
    }
    return record | changes


def fact(fact_id: str = "a", relation: str = "r", target: str = "Oslo", **changes: Any) -> Fact:
    fields: dict[str, Any] = {
        "fact_id": fact_id,
        "relation": relation,
        "subject": f"Subject {fact_id}",
        "prompt": "{} lives in",
        "target_true": target,
        "target_false": "Nowhere",
    }
    return Fact(**{**fields, **changes})


GREEDY = KnownRule(rule="greedy", within_tokens=36, min_p_true=0.0)


# The readers


def test_embedded_table(tmp_path: Path) -> None:
    facts = {f.subject: f for f in read_facts("embedded", write_table(tmp_path), 0)}
    assert len(facts) == 12
    one = facts["Ntown 3"]
    assert (one.fact_id, one.relation, one.source) == ("lang-Ntown-3", "lang", "embedded")
    assert (one.text, one.target_true, one.target_false) == ("Ntown 3 speaks", "Norse", "Latin")
    # the empty paraphrase_4 is no paraphrase
    assert one.paraphrases == ("In Ntown 3 one hears", "To visit Ntown 3, learn", "Schools in Ntown 3 teach")
    assert sorted(one.neighborhood) == [f"Ntown {i} speaks" for i in (0, 1, 2, 4, 5)]


def test_embedded_table_with_windows_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    plain = read_facts("embedded", write_table(tmp_path), 0)
    for name in ("relations.tsv", "facts.tsv"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_facts("embedded", tmp_path, 0) == plain


def test_ambiguous_and_lonely_subjects_are_left_out_and_listed(tmp_path: Path) -> None:
    rows = [*ROWS, "lang\tBoth Town\tNorse", "lang\tBoth Town\tLatin", "lang\tLonely\tGothic"]
    read = read_fact_file("embedded", write_table(tmp_path, rows=rows), 0)
    assert len(read.facts) == 12
    assert {r.subject: r.reason for r in read.left_out} == {
        "Both Town": "the table gives it several objects: Norse, Latin",
        "Lonely": "0 other subjects with the object Gothic, fewer than 5",
    }
    # what is ambiguous is no neighbor either; what is left out still lends its object as a false target
    assert not any("Both Town" in prompt for f in read.facts for prompt in f.neighborhood)
    seeds = (read_facts("embedded", tmp_path, seed) for seed in range(4))
    assert {f.target_false for facts in seeds for f in facts} == {"Norse", "Latin", "Gothic"}


def test_a_false_target_never_begins_as_the_true_one_does(tmp_path: Path) -> None:
    rows = [row.replace("Latin", "Norse-Gaelic") for row in ROWS]
    read = read_fact_file("embedded", write_table(tmp_path, rows=[*rows, "lang\tLonely\tGothic"]), 0)
    assert {f.target_false for f in read.facts} == {"Gothic"}


def test_seed_draws_order_false_targets_and_neighbors() -> None:
    first, again, other = (read_facts("embedded", CARRIED, seed) for seed in (0, 0, 1))
    assert first == again
    assert {f.fact_id for f in first} == {f.fact_id for f in other}
    assert [f.fact_id for f in first] != [f.fact_id for f in other]
    by_id = {f.fact_id: f for f in other}
    assert any(f.target_false != by_id[f.fact_id].target_false for f in first)
    assert any(f.neighborhood != by_id[f.fact_id].neighborhood for f in first)


def test_a_new_row_leaves_other_relations_alone(tmp_path: Path) -> None:
    relations = [*RELATIONS, RELATIONS[1].replace("lang\t", "other\t", 1)]
    more = [row.replace("lang\t", "other\t").replace("town", "ville") for row in ROWS]
    before = {f.fact_id: f for f in read_facts("embedded", write_table(tmp_path, relations, ROWS + more), 0)}
    longer = [*ROWS, *more, "lang\tNew Town\tNorse"]
    after = {f.fact_id: f for f in read_facts("embedded", write_table(tmp_path, relations, longer), 0)}
    assert after.keys() - before.keys() == {"lang-New-Town"}
    assert all(after[i] == f for i, f in before.items() if f.relation == "other" or f.target_true == "Latin")
    assert all(after[i].target_false == f.target_false for i, f in before.items())


def test_counterfact(tmp_path: Path) -> None:
    (one,) = read_facts("counterfact", write_json(tmp_path, [counterfact()]), 0)
    assert one == Fact(
        fact_id="counterfact-7",
        relation="P403",
        subject="Loire",
        prompt="The river {} flows into the",
        target_true="Atlantic",
        target_false="Baltic",
        paraphrases=("Two lines.\nThe Loire ends in the", "Loire's mouth is on the"),
        neighborhood=("The river Douro flows into the",),
        source="counterfact",
    )
    assert one.text[one.subject_at :].startswith("Loire flows")


def test_targets_lose_the_leading_space_they_may_come_with(tmp_path: Path) -> None:
    record = counterfact(target_true={"str": " Atlantic"}, prompt="The river {} flows into the ")
    (one,) = read_facts("counterfact", write_json(tmp_path, [record]), 0)
    assert (one.target_true, one.prompt[-3:]) == ("Atlantic", "the")


def test_published_files_keep_their_order(tmp_path: Path) -> None:
    records = [counterfact(case_id=i) for i in (5, 2, 9, 0)]
    facts = read_facts("counterfact", write_json(tmp_path, records), 0)
    assert [f.fact_id for f in facts] == [f"counterfact-{i}" for i in (5, 2, 9, 0)]
    kept = choose(facts, [Known(0.5, True, True)] * 4, GREEDY, 2)
    assert [k for k, _ in kept] == [True, True, False, False]


@pytest.mark.parametrize(
    ("prompt", "subject", "template"),
    [
        (
            "Parisian cafes are found in Paris, the capital of",
            "Paris",
            "Parisian cafes are found in {}, the capital of",
        ),
        ("Oslo, like Oslo, is in", "Oslo", "{}, like Oslo, is in"),
        ("Beyond Newport lies port", "port", "Beyond Newport lies {}"),
        ("The C++ book (3rd ed.) is by", "C++ book (3rd ed.)", "The {} is by"),
        ("In the Dostoyevskys' house lived", "Dostoyevsky", "In the {}s' house lived"),
    ],
)
def test_flat_counterfact_finds_the_subject(tmp_path: Path, prompt: str, subject: str, template: str) -> None:
    (one,) = read_facts("counterfact_flat", write_json(tmp_path, [flat(prompt=prompt, subject=subject)]), 0)
    assert (one.prompt, one.text, one.relation) == (template, prompt, template)
    assert (one.fact_id, one.target_true, one.target_false) == ("counterfact-3", "France", "Spain")
    assert one.paraphrases == ("To reach Paris, travel to",)
    assert one.neighborhood == ("Lyon is in",)


@settings(max_examples=40, deadline=None)
@given(
    subject=st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="{}"), min_size=1, max_size=20),
    before=st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="{}"), max_size=8),
)
def test_flat_records_give_back_their_prompt(
    tmp_path_factory: pytest.TempPathFactory, subject: str, before: str
) -> None:
    prompt = f"{before} {subject} is".strip()
    path = write_json(tmp_path_factory.mktemp("flat"), [flat(subject=subject, prompt=prompt)])
    (one,) = read_facts("counterfact_flat", path, 0)
    assert one.text == prompt
    assert one.text.startswith(one.subject, one.subject_at)


def test_known_1000(tmp_path: Path) -> None:
    records = [
        known_record(0, "Ada", "Danish"),
        known_record(1, "Bo", "Danish", prompt="Bo, whose Bo speaks", template="Bo, whose {} speaks"),
        known_record(2, "Cy", "Dutch"),
        known_record(3, "Cy", "Danish"),
        known_record(4, "Nicosia", "Athens", relation="P190"),
    ]
    read = read_fact_file("known_1000", write_json(tmp_path, records), 0)
    ada, bo = read.facts
    assert (ada.prompt, ada.target_true, ada.target_false) == ("The tongue of {} is", "Danish", "Dutch")
    # Cy speaks the false target as well
    assert (ada.paraphrases, ada.neighborhood) == ((), ("Bo, whose Bo speaks",))
    assert bo.prompt == "Bo, whose {} speaks"  # the template says which of the two is meant
    reasons = {r.fact_id: r.reason for r in read.left_out}
    assert set(reasons) == {"known-2", "known-3", "known-4"}  # Cy speaks both, so neither is false of Cy
    assert reasons["known-4"] == "no other attribute in its relation to serve as false target"


def test_zsre(tmp_path: Path) -> None:
    records = [zsre(), zsre(subject="Elsewhere"), zsre(alt="A. Rowe"), zsre(alt="")]
    read = read_fact_file("zsre", write_json(tmp_path, records), 0)
    (one,) = read.facts
    assert one.text == "Question: Who was the architect of Watts Hall? Answer:"
    assert (one.relation, one.subject) == ("Who was the architect of {}?", "Watts Hall")
    assert (one.target_true, one.target_false) == ("Ada Rowe", "Bauhaus")
    assert one.paraphrases == ("Question: Which architect drew Watts Hall? Answer:",)
    assert one.neighborhood == ("Question: who wrote the oldest map? Answer:",)
    assert [(r.fact_id, r.reason) for r in read.left_out] == [
        ("zsre-1", "the subject is not in the question"),
        ("zsre-2", "alt is one of the true answers"),
        ("zsre-3", "no alternative answer"),
    ]


# The carried table


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


# Bad input

BAD_TABLES: list[tuple[list[str], list[str], str]] = [
    (RELATIONS, ["lang\tAsgard"], "line 2 has 2 cells"),
    (RELATIONS, ["lang\tAsgard\t"], "facts.tsv, line 2: target_true is empty"),
    (RELATIONS, ["lang\t \tNorse"], "line 2: subject is empty"),
    (RELATIONS, [*ROWS, ROWS[0]], "line 14: the fact 'lang, Ntown 0, Norse' stands above already"),
    (RELATIONS, ["tongue\tAsgard\tNorse"], "relation 'tongue' is not in"),
    (RELATIONS, ["lang\tAs\x00gard\tNorse"], "with the character U+0000"),
    (RELATIONS, ["", *ROWS], "facts.tsv, line 2 is empty"),
    (RELATIONS, [], "holds no fact that can be edited"),
    (RELATIONS, ROWS[:6], "no other object in its relation"),
    (RELATIONS, [*ROWS, f"lang\t{'x' * 1001}\tNorse"], "the subject has 1001 characters"),
    (
        [HEADER, *RELATIONS[1:], RELATIONS[1]],
        ROWS,
        "relations.tsv, line 3: relation 'lang' has a row already",
    ),
    (
        [HEADER, RELATIONS[1].replace("{} speaks", "People speak")],
        ROWS,
        "'People speak'; it must hold {} once",
    ),
    ([HEADER, RELATIONS[1].replace("In {} one hears", "{} speaks")], ROWS, "has a template twice"),
    ([HEADER, RELATIONS[1].replace("In {} one hears", "")], ROWS, "paraphrase_1 is empty"),
    ([HEADER.replace("prompt", "promt"), RELATIONS[1]], ROWS, "the header line is"),
    (
        [HEADER, RELATIONS[1].replace("lang\t", "la ng\t", 1)],
        [r.replace("lang", "la ng", 1) for r in ROWS],
        "fact_id",
    ),
]


@pytest.mark.parametrize(("relations", "rows", "says"), BAD_TABLES, ids=[says[:40] for _, _, says in BAD_TABLES])
def test_bad_tables(tmp_path: Path, relations: list[str], rows: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        read_facts("embedded", write_table(tmp_path, relations, rows), 0)
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


BAD_RECORDS: list[tuple[str, Any, str]] = [
    ("counterfact", {"case_id": 1}, "holds a JSON dict; a list of records is right"),
    ("counterfact", [3], "record 0: found '3'"),
    ("counterfact", [], "holds no fact that can be edited"),
    ("counterfact", [{"case_id": 1}], "record 0 (case_id 1) lacks 'requested_rewrite'"),
    ("counterfact", [counterfact(), counterfact()], "fact 'counterfact-7' occurs twice"),
    ("counterfact", [counterfact(case_id="a b")], "fact 'counterfact-a b': the fact_id must consist of"),
    ("counterfact", [counterfact(case_id=None)], "case_id is 'None'; it must be a whole number or a text"),
    ("counterfact", [counterfact(prompt="The river Loire flows into the")], "holds {} 0 times"),
    ("counterfact", [counterfact(prompt="{} and {} meet the")], "holds {} 2 times"),
    (
        "counterfact",
        [counterfact(target_true={"str": " "})],
        "(case_id 7): fact 'counterfact-7': target_true is empty",
    ),
    (
        "counterfact",
        [counterfact(target_true={"str": "Baltic"})],
        "target_true and target_false are both 'Baltic'",
    ),
    ("counterfact", [counterfact(target_true="Atlantic")], "target_true is 'Atlantic'; it must be an object"),
    ("counterfact", [counterfact(subject="")], "subject is empty"),
    ("counterfact", [counterfact(subject="Lo\nire")], "U+000A"),
    ("counterfact", [counterfact(subject="Lo\ud800ire")], "U+D800"),
    ("counterfact", [counterfact(subject="L" * 1001)], "the subject has 1001 characters; at most 1000"),
    ("counterfact", [counterfact(paraphrase_prompts=[1])], "paraphrase_prompts holds '1'"),
    ("counterfact", [counterfact(neighborhood_prompts=["fine", ""])], "neighborhood[1] is empty"),
    ("counterfact_flat", [flat(subject="London")], "subject 'London' does not occur in its prompt"),
    ("counterfact_flat", [flat(subject="")], "subject '' does not occur"),
    ("counterfact_flat", [flat(ground_truth="")], "target_true is empty"),
    ("counterfact_flat", [flat(target_new=5)], "target_new is '5'; it must be a text"),
    ("known_1000", [known_record(0, "Ada", "Danish", prompt="Hers is")], "subject 'Ada' does not occur"),
    ("known_1000", [known_record(0, "Ada", "")], "record 0 (known_id 0): attribute is empty"),
    ("known_1000", [known_record(0, "Ada", "Danish")], "no other attribute in its relation"),
    ("zsre", [zsre(answers=[])], "answers is empty"),
    ("zsre", [{k: v for k, v in zsre().items() if k != "src"}], "record 0 lacks 'src'"),
]


@pytest.mark.parametrize(
    ("source", "content", "says"), BAD_RECORDS, ids=[f"{s}-{says[:40]}" for s, _, says in BAD_RECORDS]
)
def test_bad_records(tmp_path: Path, source: str, content: Any, says: str) -> None:
    with pytest.raises(UserError) as error:
        read_facts(source, write_json(tmp_path, content), 0)
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"case_id": 1', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ("Zürich".encode("latin-1"), "is not UTF-8 text (byte 1)"),
        (None, "can't be read as a fact file: No such file"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "facts.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_facts("counterfact", path, 0)
    assert says in str(error.value)
    assert "facts.json" in str(error.value)


def test_a_file_for_a_folder_a_folder_for_a_file_and_an_unknown_source(tmp_path: Path) -> None:
    path = write_json(tmp_path, [counterfact()])
    with pytest.raises(UserError, match="is not a folder"):
        read_facts("embedded", path, 0)
    with pytest.raises(UserError, match="can't be read as a fact file"):
        read_facts("counterfact", tmp_path, 0)
    with pytest.raises(UserError, match=r"facts\.source is 'counterfacts'; one of embedded, counterfact,"):
        read_facts("counterfacts", path, 0)
    with pytest.raises(UserError, match=r"relations\.tsv can't be read"):
        read_facts("embedded", tmp_path, 0)


# Known facts and the choice among them


@pytest.mark.parametrize(
    ("rule", "measured", "reason"),
    [
        (GREEDY, Known(0.3, True, True), ""),
        (GREEDY, Known(0.3, False, True), "greedy answer is not the target"),
        (KnownRule(rule="within", within_tokens=36, min_p_true=0), Known(0.3, False, True), ""),
        (
            KnownRule(rule="within", within_tokens=36, min_p_true=0),
            Known(0.3, False, False),
            "target not within 36 greedy tokens",
        ),
        (KnownRule(rule="none", within_tokens=36, min_p_true=0), Known(1e-9, False, False), ""),
        (
            KnownRule(rule="none", within_tokens=36, min_p_true=0.02),
            Known(0.0012, True, True),
            "p(true) 0.0012 below 0.02",
        ),
        (KnownRule(rule="none", within_tokens=36, min_p_true=0.02), Known(0.02, True, True), ""),
        (
            KnownRule(rule="none", within_tokens=36, min_p_true=0),
            Known(float("nan"), True, True),
            "p(true) is nan",
        ),
    ],
)
def test_known_rules(rule: KnownRule, measured: Known, reason: str) -> None:
    sure = fact("sure"), Known(0.9, True, True)
    (_, first) = choose([sure[0], fact()], [sure[1], measured], rule, None)
    assert first == (not reason, reason)


def test_no_known_fact_is_an_error() -> None:
    with pytest.raises(UserError, match=r"none of 2 facts is known to the model by facts\.known\.rule 'greedy'"):
        choose([fact("a"), fact("b")], [Known(0.1, False, False)] * 2, GREEDY, 5)


def test_facts_beyond_the_count_say_so() -> None:
    facts = [fact(c, relation=c, source="counterfact") for c in "abc"]
    chosen = choose(facts, [Known(0.5, c != "a", True) for c in "abc"], GREEDY, 1)
    assert chosen == [
        (False, "greedy answer is not the target"),
        (True, ""),
        (False, "not among the first 1 known facts"),
    ]


def test_choice_takes_turns_over_relations_and_objects() -> None:
    # 6 facts of r1 (4 with one object, 2 with another), then 2 of r2
    targets = [("r1", "Oslo")] * 4 + [("r1", "Rome")] * 2 + [("r2", "Bern")] * 2
    facts = [fact(str(i), relation=r, target=t) for i, (r, t) in enumerate(targets)]
    known = [Known(0.5, True, True)] * len(facts)
    order = []
    for count in range(1, 9):
        kept = [f.fact_id for f, (k, _) in zip(facts, choose(facts, known, GREEDY, count), strict=True) if k]
        order += [i for i in kept if i not in order]
    assert order == ["0", "6", "4", "7", "1", "5", "2", "3"]


def test_choice_from_the_carried_table_is_spread(carried: list[Fact]) -> None:
    chosen = choose(carried, [Known(0.5, True, True)] * len(carried), GREEDY, 14)
    kept = [f for f, (k, _) in zip(carried, chosen, strict=True) if k]
    assert len(kept) == len({f.relation for f in kept}) == 14


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.tuples(st.sampled_from("rst"), st.sampled_from("XYZ"), st.booleans()), min_size=1, max_size=30),
    counts=st.tuples(st.integers(1, 30), st.integers(0, 10)),
    source=st.sampled_from(["embedded", "counterfact"]),
)
def test_a_higher_count_only_adds_facts(
    cells: list[tuple[str, str, bool]], counts: tuple[int, int], source: str
) -> None:
    facts = [fact(str(i), relation=r, target=t, source=source) for i, (r, t, _) in enumerate(cells)]
    known = [Known(0.5, greedy, greedy) for *_, greedy in cells]
    total = sum(greedy for *_, greedy in cells)
    if not total:
        with pytest.raises(UserError):
            choose(facts, known, GREEDY, counts[0])
        return
    few, many = (choose(facts, known, GREEDY, count) for count in (counts[0], sum(counts)))
    assert all(more for (less, _), (more, _) in zip(few, many, strict=True) if less)
    assert sum(kept for kept, _ in few) == min(total, counts[0])
    assert all(kept == (not reason) for kept, reason in few)
    assert all(k.greedy_correct for k, (kept, _) in zip(known, few, strict=True) if kept)
    per_relation = Counter(f.relation for f, (kept, _) in zip(facts, few, strict=True) if kept)
    room = Counter(f.relation for f, k in zip(facts, known, strict=True) if k.greedy_correct)
    if source == "embedded":  # no relation is ahead of one that still has facts to give
        assert all(per_relation[a] <= per_relation[b] + 1 for a in room for b in room if per_relation[b] < room[b])


# The table of facts


def test_table_keeps_every_fact_and_gives_back_the_kept_ones(tmp_path: Path) -> None:
    rows = [*ROWS, "lang\tBoth Town\tNorse", "lang\tBoth Town\tLatin"]
    read = read_fact_file("embedded", write_table(tmp_path, rows=rows), 0)
    known = [Known(0.01 * i, i % 2 == 0, True) for i in range(len(read.facts))]
    chosen = choose(read.facts, known, GREEDY, 4)
    frame = facts_to_frame(read.facts, known, chosen, read.left_out)
    assert tuple(frame.columns) == tuple(FACTS)
    assert len(frame) == 13
    assert frame["kept"].sum() == 4
    assert ((frame["drop_reason"] == "") == frame["kept"]).all()
    assert (frame["p_true"].dtype, frame["greedy_correct"].dtype, frame["kept"].dtype) == (
        "float64",
        "bool",
        "bool",
    )
    assert frame.iloc[12]["drop_reason"] == "the table gives it several objects: Norse, Latin"
    path = tmp_path / "facts.parquet"
    frame.to_parquet(path)
    kept = [f for f, (k, _) in zip(read.facts, chosen, strict=True) if k]
    assert kept_facts(pd.read_parquet(path)) == kept_facts(frame) == kept


def test_table_without_a_column_or_a_kept_fact() -> None:
    frame = facts_to_frame([fact()], [Known(0.5, True, True)], [(True, "")])
    with pytest.raises(UserError, match="lacks the column 'subject'"):
        kept_facts(frame.drop(columns="subject"))
    with pytest.raises(UserError, match="no row with kept = true"):
        kept_facts(frame.assign(kept=False))


def test_trim() -> None:
    one = fact(paraphrases=("a", "b", "c"), neighborhood=("d", "e"))
    (short,) = trim([one], 2, 0)
    assert (short.paraphrases, short.neighborhood) == (("a", "b"), ())
    assert trim([one], 9, 9) == [one]
