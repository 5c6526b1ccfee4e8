"""The readers of fact files: what they give of sound files, and their one sentence for others."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.facts.choose import choose
from pipeline.facts.fact import Fact, Known
from pipeline.facts.readers import read_fact_file, read_facts
from tests.facts.made import (
    CARRIED,
    GREEDY,
    HEADER,
    RELATIONS,
    ROWS,
    counterfact,
    flat,
    known_record,
    write_json,
    write_table,
    zsre,
)


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


# Bad input

BAD_TABLES: list[tuple[list[str], list[str], str]] = [
    (RELATIONS, [], "holds no fact that can be edited; it has no records"),
    (RELATIONS, ROWS[:6], "none of 6 records, counted from 0, is usable: no other object in its relation (6, first in"),
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
    ([HEADER, RELATIONS[1].replace("{} speaks", "{} speaks" * 1001)], ROWS, "it must hold {} once"),
    ([HEADER, RELATIONS[1].replace("speaks", "speaks" * 1600)], ROWS, "template of 9603 characters; at most 9000"),
    ([HEADER, RELATIONS[1].replace("In {} one hears", "{} speaks")], ROWS, "has a template twice"),
    ([HEADER, RELATIONS[1].replace("In {} one hears", "")], ROWS, "paraphrase_1 is empty"),
    ([HEADER, RELATIONS[1].replace("In {} one hears", "\u00a0\u200b")], ROWS, "line 2: paraphrase_1 is empty"),
    ([HEADER, "lang\tlanguage"], ROWS, "relations.tsv, line 2: the row has 2 cells; 7, tab separated, are right"),
    ([HEADER.replace("prompt", "promt"), RELATIONS[1]], ROWS, "the header line is"),
    (
        [HEADER, RELATIONS[1].replace("lang\t", "la ng\t", 1)],
        [r.replace("lang", "la ng", 1) for r in ROWS],
        "none of 12 records, counted from 0, is usable: the fact_id must consist of letters",
    ),
]


@pytest.mark.parametrize(("relations", "rows", "says"), BAD_TABLES, ids=[says[:40] for _, _, says in BAD_TABLES])
def test_bad_tables(tmp_path: Path, relations: list[str], rows: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        read_facts("embedded", write_table(tmp_path, relations, rows), 0)
    assert says in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[{"case_id": 1', "is not JSON"),
        (b'{"case_id": 1}', "holds a JSON dict; a list of records is right"),
        (b"[]", "holds no fact that can be edited; it has no records"),
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
