"""Facts of the project's own format whose rows name their neighbors, so that a file of three rows will do."""

from pathlib import Path

import pytest

from pipeline.facts.readers import read_fact_file
from tests.facts.made import HEADER

RELATION = "place\tcountry\t{} is in\tWho goes to {} is in\tThe land of {} is\tOn maps, {} is in\t"
THREE = {"Mount Fuji": ("Japan", "Kyoto|Osaka"), "the Colosseum": ("Italy", "Lake Como"), "Giza": ("Egypt", "-")}


def write(folder: Path, rows: list[str], *, several: bool = False) -> Path:
    head = f"{HEADER}\tseveral\n{RELATION}\tyes\n" if several else f"{HEADER}\n{RELATION}\n"
    (folder / "relations.tsv").write_text(head, encoding="utf-8")
    columns = ["relation", "subject", "target_true", *["also_true"] * several, "neighbors"]
    (folder / "facts.tsv").write_text("\n".join(["\t".join(columns), *rows]) + "\n", encoding="utf-8")
    return folder


def three(**changes: tuple[str, str]) -> list[str]:
    named = THREE | {subject.replace("_", " "): cells for subject, cells in changes.items()}
    return ["\t".join(["place", subject, *cells]) for subject, cells in named.items()]


def test_three_rows_are_three_facts(tmp_path: Path) -> None:
    read = read_fact_file("embedded", write(tmp_path, three()), 0)
    assert read.left_out == []
    by = {fact.subject: fact for fact in read.facts}
    assert by["Mount Fuji"].neighborhood == ("Kyoto is in", "Osaka is in")
    assert by["the Colosseum"].neighborhood == ("Lake Como is in",)
    assert by["Giza"].neighborhood == ()
    assert {fact.target_true for fact in read.facts} == {"Japan", "Italy", "Egypt"}
    assert all(fact.target_false in {"Japan", "Italy", "Egypt"} - {fact.target_true} for fact in read.facts)


def test_where_the_cell_is_empty_they_are_drawn_from_the_other_rows(tmp_path: Path) -> None:
    towns = [f"place\tTown {i}\tJapan\t" for i in range(6)]
    read = read_fact_file("embedded", write(tmp_path, [*three(), *towns]), 0)
    by = {fact.subject: fact for fact in read.facts}
    assert len(by["Town 0"].neighborhood) == 6  # Mount Fuji among them
    assert "Mount Fuji is in" in by["Town 0"].neighborhood
    assert by["Mount Fuji"].neighborhood == ("Kyoto is in", "Osaka is in")


def test_a_false_target_is_true_of_no_neighbor(tmp_path: Path) -> None:
    """Of Italy and Egypt, the one that may pass for true of a named neighbor is never the false one."""
    rows = [
        "place\tMount Fuji\tJapan\t-\tKyoto",
        "place\tKyoto\tJapan\tItaly\t-",
        "place\tComo\tItaly\t-\t-",
        "place\tGiza\tEgypt\t-\t-",
    ]
    for seed in range(8):
        read = read_fact_file("embedded", write(tmp_path, rows, several=True), seed)
        assert {fact.subject: fact.target_false for fact in read.facts}["Mount Fuji"] == "Egypt"
    rows[-1] = "place\tGiza\tItaly\t-\t-"
    read = read_fact_file("embedded", write(tmp_path, rows, several=True), 0)
    assert {one.subject: one.reason for one in read.left_out}["Mount Fuji"].startswith("0 other subjects")


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("Kyoto|Kyoto", "each once"),
        ("Kyoto|", "each once"),
        ("Kyoto|the old Mount Fuji", "names the subject itself, or one whose name"),
        ("Giza", "a subject that has another object in this file"),
        ("K" * 5000, "a neighbor"),
    ],
)
def test_neighbors_that_cannot_be_are_told(cell: str, reason: str, tmp_path: Path) -> None:
    read = read_fact_file("embedded", write(tmp_path, three(Mount_Fuji=("Japan", cell))), 0)
    (left,) = read.left_out
    assert reason in left.reason
    assert len(read.facts) == 2
