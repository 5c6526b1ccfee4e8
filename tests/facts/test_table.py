"""Neighbors that are too close, false targets that are true, and the rows of the carried table that were put right."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.facts.fact import Fact, FactFile
from pipeline.facts.neighbors import Templates, contains, related
from pipeline.facts.readers import read_fact_file

CARRIED = Path(__file__).parents[2] / "data" / "facts" / "wikidata"
SEEDS = range(10)


@pytest.fixture(scope="module")
def carried() -> list[FactFile]:
    return [read_fact_file("embedded", CARRIED, seed) for seed in SEEDS]


# Names within names


@pytest.mark.parametrize(
    ("text", "phrase", "within"),
    [
        ("Pentium 4", "Pentium", True),
        ("Wii U system software", "Wii U", True),
        ("Nazi Germany", "GERMANY", True),
        ("The Loire's mouth", "loire", True),
        ("German Empire", "Germany", False),
        ("Newport", "port", False),
        ("Chevrolets", "Chevrolet", False),
        ("iOS 71", "iOS 7", False),
        ("C++11 and C", "C++", True),
        ("STRASSE 9", "Straße", True),
        ("Cafe\u0301 Central", "café", True),
        ("Cafe\u0301", "Cafe", False),  # the accent belongs to the word
        ("रामायण", "राम", False),  # a vowel sign, which \w does not match, goes on with the word
        ("राम का घर", "राम", True),
        ("Московская область", "Москов", False),
        ("東京都", "東京", True),  # no spaces between words
        ("서울은 수도", "서울", True),  # a particle without a space
        ("ประเทศไทย", "ไทย", True),
        ("Paris", "", False),
    ],
)
def test_whole_words_of_any_script(text: str, phrase: str, within: bool) -> None:
    assert contains(text, phrase) is within
    assert related(phrase, text) is within
    assert related(text, phrase) is within


def test_templates_tell_what_a_prompt_is_about() -> None:
    templates = Templates(["{} is located in", "The capital of {} is", "{} lies in"])
    prompts = ("Germany is located in", "The capital of Prussia is", "Oslo lies in", "Nazi lies in wait", "Germany has")
    assert templates.unrelated(prompts, "Nazi Germany") == prompts[1:]
    assert Templates([]).unrelated(prompts, "Oslo") == (*prompts[:2], *prompts[3:])


# Every reader


def rows(*subjects: str, target: str = "Intel", also: str = "") -> list[str]:
    return [f"made\t{subject}\t{target}{also}" for subject in subjects]


def write_table(folder: Path, facts: list[str], several: str = "", also: bool = False) -> Path:
    head = "relation\tname\tprompt\tparaphrase_1\tparaphrase_2\tparaphrase_3"
    line = "made\tmaker\t{} is made by\tThe maker of {} is\tWho buys {} buys from\t{} comes from"
    table = [head, line] if not several else [f"{head}\tseveral", f"{line}\t{several}"]
    (folder / "relations.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    head = "relation\tsubject\ttarget_true" + "\talso_true" * also
    (folder / "facts.tsv").write_text("\n".join([head, *facts]) + "\n", encoding="utf-8")
    return folder


def write_json(folder: Path, records: list[dict[str, Any]]) -> Path:
    path = folder / "facts.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


OTHERS = ("Xeon", "Itanium", "IA-32", "XScale", "Core 2", "NetBurst")
APPLES = rows("Siri", "iOS", "iPod", "Xcode", "App Store", "iTunes", target="Apple")


def test_embedded_neighbors_are_no_kin(tmp_path: Path) -> None:
    read = read_fact_file("embedded", write_table(tmp_path, rows("Pentium", "pentium 4", *OTHERS) + APPLES), 0)
    by = {fact.subject: fact for fact in read.facts}
    assert sorted(by["Pentium"].neighborhood) == sorted(by["pentium 4"].neighborhood)
    assert set(by["Pentium"].neighborhood) == {f"{name} is made by" for name in OTHERS}
    assert len(by["Xeon"].neighborhood) == 7  # to others both are neighbors


def test_embedded_facts_with_too_few_neighbors_left_say_so(tmp_path: Path) -> None:
    names = ("Pentium", "Pentium 4", "Pentium II", *OTHERS[:4])
    read = read_fact_file("embedded", write_table(tmp_path, rows(*names) + APPLES), 0)
    reasons = {record.subject: record.reason for record in read.left_out}
    assert reasons == {"Pentium": "4 other subjects with the object Intel fit to be neighbors, fewer than 5"}


def counterfact(number: int, subject: str, prompt: str, neighborhood: list[str]) -> dict[str, Any]:
    rewrite = {"prompt": prompt, "relation_id": "P30", "subject": subject}
    rewrite |= {"target_true": {"str": "Europe"}, "target_new": {"str": "Asia"}}  # type: ignore[dict-item]
    more = {"paraphrase_prompts": ["A map shows it in"], "neighborhood_prompts": neighborhood}
    return {"case_id": number, "requested_rewrite": rewrite, **more}


def test_counterfact_neighbors_are_no_kin(tmp_path: Path) -> None:
    prompts = ["Nazi Germany is part of", "Tuscany is part of", "The realm of NAZI GERMANY'S heirs is in"]
    prompts += ["Germany is in the continent", "German Empire is in the continent"]
    records = [counterfact(0, "Nazi Germany", "{} is part of", prompts)]
    records.append(counterfact(1, "Rome", "{} is in the continent", ["Oslo is part of", "Rome is part of"]))
    nazi, rome = read_fact_file("counterfact", write_json(tmp_path, records), 0).facts
    # "Germany" is told by the template of another record
    assert nazi.neighborhood == ("Tuscany is part of", "German Empire is in the continent")
    assert rome.neighborhood == ("Oslo is part of",)


def test_flat_counterfact_neighbors_are_no_kin(tmp_path: Path) -> None:
    def flat(number: int, subject: str, locality: str | list[str]) -> dict[str, Any]:
        record = {"case_id": number, "prompt": f"{subject} is part of", "subject": subject, "ground_truth": "Europe"}
        return record | {"target_new": "Asia", "rephrase_prompt": "On a map it is in", "locality_prompt": locality}

    records = [flat(0, "Germany", ["Nazi Germany is part of", "Oslo lies in"]), flat(1, "Wii U", "Wii U Pro lies in")]
    records.append(flat(2, "New Germany", ["Germany is part of", "Rome is part of"]))
    facts = read_fact_file("counterfact_flat", write_json(tmp_path, records), 0).facts
    assert [fact.neighborhood for fact in facts] == [("Oslo lies in",), (), ("Rome is part of",)]


def test_known_1000_neighbors_are_no_kin(tmp_path: Path) -> None:
    pairs = [("Pentium", "Intel"), ("Pentium 4", "Intel"), ("Xeon", "Intel"), ("iOS", "Apple"), ("Core", "Intel")]
    pairs += [("Core", "Apple")]  # of which the false target is true
    records = [
        {"known_id": i, "subject": subject, "attribute": maker, "template": "{} is by", "prompt": f"{subject} is by"}
        | {"relation_id": "P178", "prediction": ""}
        for i, (subject, maker) in enumerate(pairs)
    ]
    by = {fact.subject: fact for fact in read_fact_file("known_1000", write_json(tmp_path, records), 0).facts}
    assert by["Pentium"].neighborhood == by["Pentium 4"].neighborhood == ("Xeon is by",)
    assert sorted(by["Xeon"].neighborhood) == ["Pentium 4 is by", "Pentium is by"]


def test_zsre_neighbors_are_no_kin(tmp_path: Path) -> None:
    def zsre(subject: str, loc: str) -> dict[str, Any]:
        record = {"subject": subject, "src": f"Who drew {subject}?", "rephrase": "By whom?", "answers": ["Ada"]}
        return record | {"alt": "Bo", "loc": f"nq question: {loc}"}

    records = [zsre("Watts Hall", "when was watts hall annex built"), zsre("Watts Hall", "who wrote the map")]
    records.append(zsre("Watts Hall Annex", "Who drew Watts Hall"))
    facts = read_fact_file("zsre", write_json(tmp_path, records), 0).facts
    assert [fact.neighborhood for fact in facts] == [(), ("Question: who wrote the map? Answer:",), ()]


def test_published_prompts_are_checked_before_any_is_dropped(tmp_path: Path) -> None:
    records = [counterfact(0, "Rome", "{} is part of", ["Rome is in", "Rome\0"])]
    with pytest.raises(UserError, match=r"neighborhood holds the character U\+0000"):
        read_fact_file("counterfact", write_json(tmp_path, records), 0)


# Relations of several objects


def test_what_else_is_true_is_no_false_target_nor_is_it_of_a_neighbor(tmp_path: Path) -> None:
    facts = (
        rows("Xeon", also="\tApple | Sun")
        + rows("Core 2", also="\tSun")
        + rows(*OTHERS[1:4], "A1", "A2", "A3", also="\t-")
    )
    facts += [f"{row}\t-" for row in APPLES] + rows(*(f"S{i}" for i in range(6)), target="Sun", also="\t-")
    facts += rows(*(f"B{i}" for i in range(6)), target="Bull", also="\t-")
    folder = write_table(tmp_path, facts, "yes", also=True)
    drawn: Counter[str] = Counter()
    for seed in SEEDS:
        by = {fact.subject: fact for fact in read_fact_file("embedded", folder, seed).facts}
        assert by["Xeon"].target_false == "Bull"
        assert by["Core 2"].target_false != "Sun"
        for name in ("A1", "A2"):
            false = by[name].target_false
            drawn[false] += 1
            assert ("Xeon is made by" in by[name].neighborhood) == (false == "Bull")
            assert ("Core 2 is made by" in by[name].neighborhood) == (false != "Sun")
    assert set(drawn) == {"Apple", "Sun", "Bull"}


def test_a_false_target_leaves_enough_neighbors(tmp_path: Path) -> None:
    # Of all six others of Xeon's object Apple is true, so only Bull leaves neighbors.
    facts = rows("Xeon", also="\t-") + rows(*OTHERS[1:], "A1", also="\tApple") + [f"{row}\t-" for row in APPLES]
    folder = write_table(tmp_path, facts + rows(*(f"B{i}" for i in range(6)), target="Bull", also="\t-"), "yes", True)
    for seed in SEEDS:
        by = {fact.subject: fact for fact in read_fact_file("embedded", folder, seed).facts}
        assert (by["Xeon"].target_false, len(by["Xeon"].neighborhood)) == ("Bull", 6)


BAD_ROWS = [
    ("yes", "\t", "also_true is empty, and its relation may have several objects; those that are true too"),
    ("no", "\tApple", "also_true is not empty, and its relation has one object a subject"),
    ("no", "\t-", "also_true is not empty, and its relation has one object a subject"),
    ("", "\tApple", "also_true is not empty, and its relation has one object a subject"),
    ("yes", "\tAple", "also_true names an object that no row of its relation has as target_true"),
    ("yes", "\tApple|Apple", "also_true must name objects beside target_true, each once, joined by |"),
    ("yes", "\tIntel", "also_true must name objects beside target_true"),
    ("yes", "\tApple|", "also_true must name objects beside target_true"),
    ("yes", "\tApple|\u200b", "also_true must name objects beside target_true"),
    ("yes", "", "the row has 3 cells; 4, tab separated, are right"),
]


@pytest.mark.parametrize(("several", "also", "says"), BAD_ROWS, ids=[f"{s}-{also!r}" for s, also, _ in BAD_ROWS])
def test_bad_rows_are_left_out(tmp_path: Path, several: str, also: str, says: str) -> None:
    empty = "\t-" if several == "yes" else "\t"
    others = [*OTHERS[1:], "A1", "A2"]
    facts = rows("Xeon", also=also) + rows(*others, also=empty) + [f"{row}{empty}" for row in APPLES]
    read = read_fact_file("embedded", write_table(tmp_path, facts, several, also=True), 0)
    (bad,) = read.left_out
    assert (bad.record, bad.file) == (0, str(tmp_path / "facts.tsv"))
    assert bad.reason.startswith(says)
    assert {fact.subject for fact in read.facts} == {*others, *(row.split("\t")[1] for row in APPLES)}
    # What else is true of Xeon is not known, so it is nobody's neighbor.
    assert not any("Xeon" in prompt for fact in read.facts for prompt in fact.neighborhood)


@pytest.mark.parametrize(
    ("also", "says"),
    [
        ("Aple", "also_true names an object that no row of its relation has as target_true"),
        ("Intel", "also_true must name objects beside target_true, each once, joined by |"),
    ],
)
def test_a_subject_with_a_bad_row_is_left_out_with_all_its_rows(tmp_path: Path, also: str, says: str) -> None:
    """Else Intel, which is true of it, could be drawn as its false target."""
    facts = rows(*OTHERS[1:], "A1", "A2", also="\t-") + [f"{row}\t-" for row in APPLES]
    facts += [f"made\tXeon\tIntel\t{also}", "made\tXeon\tApple\t-"]
    read = read_fact_file("embedded", write_table(tmp_path, facts, "yes", also=True), 0)
    assert [(one.record, one.reason) for one in read.left_out] == [
        (len(facts) - 2, says),
        (len(facts) - 1, "another row of its subject can't be used"),
    ]


def test_what_is_left_out_still_lends_its_object(tmp_path: Path) -> None:
    facts = rows("Xeon", also="\tBull") + rows(*OTHERS[1:], "A1", also="\t-") + [f"{row}\t-" for row in APPLES]
    read = read_fact_file("embedded", write_table(tmp_path, [*facts, "made\tGCOS\tBull\tBull"], "yes", also=True), 0)
    assert [one.record for one in read.left_out] == [len(facts)]
    assert {fact.target_false for fact in read.facts if fact.subject == "Xeon"} == {"Apple"}


def test_several_is_yes_or_no(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"relations\.tsv, line 2: several of relation 'made' is 'maybe'; yes, where"):
        read_fact_file("embedded", write_table(tmp_path, rows(*OTHERS) + APPLES, "maybe"), 0)


def test_a_table_that_says_several_needs_the_column_also_true(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 12 records, counted from 0, is usable: also_true is empty"):
        read_fact_file("embedded", write_table(tmp_path, rows(*OTHERS) + APPLES, "yes"), 0)


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    folder = write_table(tmp_path, [f"{row}\t\t" for row in rows(*OTHERS) + APPLES], also=True)
    path = folder / "facts.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("also_true", "also_true\talso_true"), encoding="utf-8")
    with pytest.raises(UserError, match="the header line is"):
        read_fact_file("embedded", folder, 0)


# The carried table


def find(file: FactFile, relation: str, subject: str) -> Fact | None:
    return next((fact for fact in file.facts if (fact.relation, fact.subject) == (relation, subject)), None)


def test_no_carried_neighbor_is_kin_and_no_row_is_lost(carried: list[FactFile]) -> None:
    for file in carried:
        assert not file.left_out
        subjects = {(fact.relation, fact.text): fact.subject for fact in file.facts}
        for fact in file.facts:
            near = [subjects[fact.relation, prompt] for prompt in fact.neighborhood]
            assert not [other for other in near if related(other, fact.subject)], fact.fact_id


@pytest.mark.parametrize(
    ("relation", "subject", "true"),
    [
        ("P1303", "Elvis Presley", "piano"),
        ("P1303", "Mark Isham", "piano"),
        ("P1303", "Jean-Jacques Goldman", "guitar"),
        ("P1303", "Louis Prima", "violin"),
        ("P140", "Abraham", "Christianity"),
        ("P140", "Tom Cruise", "Christianity"),
        ("P140", "Cat Stevens", "Christianity"),
        ("P30", "Azerbaijan", "Europe"),
        ("P30", "Egypt", "Asia"),
        ("P30", "Melilla", "Europe"),
    ],
)
def test_what_is_true_is_no_false_target(carried: list[FactFile], relation: str, subject: str, true: str) -> None:
    facts = [find(file, relation, subject) for file in carried]
    assert all(facts)
    assert true not in {fact.target_false for fact in facts if fact}
    for fact in carried[0].facts:  # nor is the row a neighbor where that object is the false target
        if fact.relation == relation and fact.target_false == true:
            assert not any(contains(prompt, subject) for prompt in fact.neighborhood), fact.fact_id


def test_relations_of_several_objects_draw_nothing_that_is_also_true(carried: list[FactFile]) -> None:
    lines = [line.split("\t") for line in (CARRIED / "facts.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    relations = [line.split("\t") for line in (CARRIED / "relations.tsv").read_text(encoding="utf-8").splitlines()]
    several = {row[0] for row in relations[1:] if row[relations[0].index("several")] == "yes"}
    assert several >= {"P30", "P101", "P140", "P1303", "P37", "P937"}
    also = {(relation, subject): set(cell.split("|")) for relation, subject, _, cell in lines if cell not in ("", "-")}
    assert {relation for relation, _ in also} == several
    for file in carried:
        texts = {(fact.relation, fact.text): fact.subject for fact in file.facts}
        for fact in file.facts:
            assert fact.target_false not in also.get((fact.relation, fact.subject), ()), fact.fact_id
            for prompt in fact.neighborhood:
                other = texts[fact.relation, prompt]
                assert fact.target_false not in also.get((fact.relation, other), ()), fact.fact_id


@pytest.mark.parametrize(
    ("relation", "subject"),
    [
        ("P1303", "Chris Thile"),  # plays the mandolin
        ("P1303", "Bi Ribeiro"),  # plays the bass
        ("P103", "Zelimkhan Yandarbiyev"),  # spoke Chechen
        ("P140", "Jesus Christ"),
        ("P159", "Iranian reform movement"),
        ("P178", "SPSS Modeler"),  # bought, not created, by IBM
        ("P178", "MXML"),
        ("P37", "Burkina Faso"),
        ("P407", "Masoretic Text"),
        ("P937", "Theodor Fritsch"),  # worked in Leipzig
    ],
)
def test_wrong_rows_are_gone(carried: list[FactFile], relation: str, subject: str) -> None:
    assert find(carried[0], relation, subject) is None


def test_no_template_says_a_word_of_the_subject_again(carried: list[FactFile]) -> None:
    words = re.compile(r"\w{4,}")
    for fact in carried[0].facts:
        named = set(words.findall(fact.subject.casefold()))
        for text in (fact.text, *fact.paraphrases):
            around = text.replace(fact.subject, " ").casefold()
            assert not named & set(words.findall(around)), f"{fact.fact_id}: {text}"


def test_people_orchestras_and_songs_are_not_made(carried: list[FactFile]) -> None:
    for fact in carried[0].facts:
        if fact.relation == "P495":
            assert not any(contains(text.replace(fact.subject, ""), "made") for text in fact.paraphrases), fact.fact_id


def test_counts_are_those_of_the_description(carried: list[FactFile]) -> None:
    told = (CARRIED / "SOURCE.md").read_text(encoding="utf-8")
    counts = Counter(fact.relation for fact in carried[0].facts)
    assert f"{len(carried[0].facts):,} facts in {len(counts)} relations" in told
    table = dict(re.findall(r"^\| (P\d+) \|.*\| (\d+) \|$", told, re.MULTILINE))
    assert {relation: int(count) for relation, count in table.items()} == counts
