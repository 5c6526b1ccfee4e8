"""The project's own fact table: a folder with relations.tsv and facts.tsv, tab separated.

relations.tsv: relation, name, prompt and three paraphrase templates or more; `several` says whether a subject may
have more than one object (yes | no; no without the column); `reverse` is a prompt about an object, at its `{}`, that a
subject goes on from, empty where the relation has no natural inverse. facts.tsv: relation, subject, target_true;
`also_true` says, in relations of several objects, which other objects of the relation are true of the subject or might
pass for it, joined by `|`, or `-` for none. No such object becomes the fact's false target. `neighbors`, in files that
have this column, names the subjects that the neighborhood prompts are about, joined by `|`, or `-` for none; where the
cell is empty, they are drawn from the other rows.

Both files are refused for their header line, and relations.tsv for any row of it; a row of facts.tsv that can't be used
is left out with its reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path

from pipeline.errors import UserError, quoted
from pipeline.facts.fact import (
    EMBEDDED,
    MAX_PROMPT,
    MAX_SUBJECT,
    MAX_TARGET,
    FactFile,
    Unusable,
    blank,
    check_length,
    check_text,
)
from pipeline.facts.neighbors import related
from pipeline.facts.reading import Reading, false_targets, read_text, shuffle

MIN_NEIGHBORS, MAX_NEIGHBORS = 5, 10  # of a fact

_RELATION_COLUMNS = ("relation", "name", "prompt", "paraphrase_1", "paraphrase_2", "paraphrase_3")
_FACT_COLUMNS = ("relation", "subject", "target_true")
_NONE = "-"  # in also_true and neighbors


@dataclass(frozen=True)
class _Relation:
    templates: list[str]  # the prompt's first
    several: bool
    reverse: str


@dataclass(frozen=True)
class _Row:
    place: int  # in facts.tsv, counted from 0, without the header
    cell: str  # also_true's
    several: bool  # whether its relation may have several objects
    named: str  # neighbors' cell

    @property
    def also_true(self) -> tuple[str, ...]:
        return _listed(self.cell)

    @property
    def neighbors(self) -> tuple[str, ...] | None:
        """Subjects that the row names; None where they are to be drawn."""
        return _listed(self.named) if self.named else None


def _listed(cell: str) -> tuple[str, ...]:
    return tuple(text.strip(" ") for text in cell.split("|")) if cell not in ("", _NONE) else ()


def read_embedded(path: Path, seed: int) -> FactFile:
    """The facts of the table in folder `path`.

    False target and neighbors are drawn by the seed. Neighbors have the same object, no name that contains the
    subject's or is contained in it, and the false target is not true of them; a fact with fewer than MIN_NEIGHBORS
    is left out. The same holds, but for the number, of neighbors that the row names itself.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; facts.source embedded wants one with relations.tsv and facts.tsv")
    relations = _read_relations(path / "relations.tsv")
    read = Reading(path / "facts.tsv")
    rows = _read_rows(read, relations)
    objects: dict[tuple[str, str], list[str]] = defaultdict(list)  # (relation, subject) -> what rows give it
    true: dict[tuple[str, str], list[str]] = defaultdict(list)  # (relation, subject) -> all that is true of it
    every: dict[str, dict[str, None]] = defaultdict(dict)  # relation -> its objects, in order
    for (relation, subject, target), row in rows.items():
        objects[relation, subject].append(target)
        true[relation, subject] += [target, *row.also_true]
        every[relation][target] = None
    faults = {key: _fault(key, row, every[key[0]]) for key, row in rows.items()}
    # Of these subjects it is not known what else is true: they are no facts, nor neighbors.
    unsure = {(relation, subject) for (relation, subject, _), fault in faults.items() if fault}
    for key, row in rows.items():
        with read.record(row.place):
            if key[:2] in unsure:
                raise Unusable(faults[key] or "another row of its subject can't be used")
    objects = {pair: targets for pair, targets in objects.items() if pair not in unsure}
    # Subjects of one relation and object in an order drawn once: a fact's neighbors are those after it.
    circles: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (relation, subject), targets in objects.items():
        if len(targets) == 1:
            circles[relation, targets[0]].append(subject)
    places: dict[tuple[str, str], tuple[list[str], int]] = {}  # (relation, subject) -> its circle, place in it
    for (relation, target), subjects in circles.items():
        circle = shuffle(subjects, seed, "neighbors", relation, target)
        places |= {(relation, subject): (circle, i) for i, subject in enumerate(circle)}

    for (relation, subject), targets in objects.items():
        place = rows[relation, subject, targets[0]].place
        prompt, *paraphrases = relations[relation].templates
        record = {"fact_id": f"{relation}-{_slug(subject)}", "relation": relation, "subject": subject}
        record |= {"prompt": prompt, "target_true": targets[0], "source": EMBEDDED}
        reverse = relations[relation].reverse
        with read.record(place):
            if len(targets) > 1:
                read.leave_out(place, f"the table gives it several objects: {', '.join(targets)[:200]}", **record)
                continue
            drawn = false_targets(every[relation], true[relation, subject], seed, record["fact_id"])
            circle, i = places[relation, subject]
            others, least = circle[i + 1 :] + circle[:i], MIN_NEIGHBORS
            if (named := rows[relation, subject, targets[0]].neighbors) is not None:
                _check_neighbors(named, subject, targets[0], {s: objects.get((relation, s)) for s in named})
                others, least = list(named), len(named)
            most = 0
            # The first false target that leaves enough neighbors of which it is false too.
            for false in drawn:
                apart = (s for s in others if false not in true[relation, s] and not related(s, subject))
                neighbors = list(islice(apart, MAX_NEIGHBORS))
                most = max(most, len(neighbors))
                if len(neighbors) >= min(least, MAX_NEIGHBORS):
                    break
            else:
                fit = " fit to be neighbors" if most < len(others) else ""
                reason = f"{most} other subjects with the object {targets[0][:80]}{fit}, fewer than {least}"
                read.leave_out(place, reason if drawn else "no other object in its relation", **record)
                continue
            filled = tuple(p.replace("{}", subject) for p in paraphrases)
            neighborhood = tuple(prompt.replace("{}", s) for s in neighbors)
            read.add(**record, target_false=false, paraphrases=filled, neighborhood=neighborhood, reverse=reverse)
    by_id = {fact.fact_id: fact for fact in read.facts}
    return read.done([by_id[fact_id] for fact_id in shuffle(by_id, seed, "fact order")])


def _read_relations(path: Path) -> dict[str, _Relation]:
    """The relations by name. UserError for any row that can't be used: all facts of its relation rest on it."""
    relations: dict[str, _Relation] = {}
    for number, cells in _rows_of(path, _RELATION_COLUMNS, optional=r"several|reverse|paraphrase_.*"):
        where = f"{path}, line {number + 2}"
        try:
            row = cells()
        except Unusable as error:
            raise UserError(f"{where}: {error}") from None
        relation = row["relation"]
        templates = [text for column, text in row.items() if column.startswith(("prompt", "paraphrase_")) and text]
        reverse = row.get("reverse", "")
        if relation in relations:
            raise UserError(f"{where}: relation {quoted(relation)} has a row already")
        for template in [*templates, *([reverse] if reverse else [])]:
            if template.count("{}") != 1:
                raise UserError(
                    f"{where}: relation {quoted(relation)} has the template {quoted(template)}; it must hold {{}} once"
                )
            if len(template) > MAX_PROMPT - MAX_SUBJECT:
                raise UserError(
                    f"{where}: relation {quoted(relation)} has a template of {len(template)} characters; at most "
                    f"{MAX_PROMPT - MAX_SUBJECT} will do"
                )
        if len(set(templates)) < len(templates):
            raise UserError(
                f"{where}: relation {quoted(relation)} has a template twice; each must be worded differently"
            )
        several = row.get("several", "no")
        if several not in ("yes", "no"):
            raise UserError(
                f"{where}: several of relation {quoted(relation)} is {quoted(several)}; yes, where a subject may have "
                "more than one object, or no is right"
            )
        relations[relation] = _Relation(templates, several == "yes", reverse)
    return relations


def _read_rows(read: Reading, relations: dict[str, _Relation]) -> dict[tuple[str, str, str], _Row]:
    """The rows of facts.tsv by relation, subject and object, without those that have no usable one."""
    rows: dict[tuple[str, str, str], _Row] = {}
    for place, cells in _rows_of(read.file, _FACT_COLUMNS, optional="also_true|neighbors"):
        with read.record(place):
            row = cells()
            relation, subject, target = (row[column] for column in _FACT_COLUMNS)
            check_length(subject, "subject", MAX_SUBJECT)  # it is in its neighbors' prompts too
            check_length(target, "target_true", MAX_TARGET)
            if relation not in relations:
                raise Unusable("its relation is not in relations.tsv")
            if (relation, subject, target) in rows:
                raise Unusable("the same fact stands in an earlier row")
            rows[relation, subject, target] = _Row(
                place, row.get("also_true", ""), relations[relation].several, row.get("neighbors", "")
            )
    return rows


def _fault(key: tuple[str, str, str], row: _Row, objects: Collection[str]) -> str:
    """What is wrong with a row's also_true, where its relation has these objects; empty where it is right."""
    also = row.also_true
    if row.several and not row.cell:
        return (
            "also_true is empty, and its relation may have several objects; those that are true too, joined by |, or "
            f"{_NONE} for none are right"
        )
    if row.cell and not row.several:
        return (
            "also_true is not empty, and its relation has one object a subject; an empty cell, or several = yes in "
            "relations.tsv, is right"
        )
    if len({key[2], *also}) <= len(also) or any(map(blank, also)):
        return "also_true must name objects beside target_true, each once, joined by |"
    if not all(text in objects for text in also):
        return "also_true names an object that no row of its relation has as target_true"
    return ""


def _check_neighbors(
    named: Sequence[str], subject: str, target: str, objects: Mapping[str, Sequence[str] | None]
) -> None:
    """Raise Unusable for neighbors that can't be the subject's. objects: what the table gives each of them, or None."""
    if len(set(named)) < len(named) or any(map(blank, named)):
        raise Unusable("neighbors must name subjects, each once, joined by |, or be - for none")
    for other in named:
        check_length(other, "a neighbor", MAX_SUBJECT)
        if related(other, subject):
            raise Unusable("neighbors names the subject itself, or one whose name holds the subject's or is held by it")
        if target not in (objects[other] or [target]):
            raise Unusable("neighbors names a subject that has another object in this file")


def _rows_of(path: Path, columns: Sequence[str], optional: str) -> Iterable[tuple[int, Callable[[], dict[str, str]]]]:
    """Yield (place from 0, what gives its cells by column) of each row; that raises Unusable where it can't.

    The header must be `columns`, then columns whose names match `optional` (a pattern); their cells may be empty.
    """
    lines = [line.rstrip("\r") for line in read_text(path).rstrip("\r\n").split("\n")]
    header = lines[0].split("\t")
    extra = header[len(columns) :]
    unknown = not all(re.fullmatch(optional, column) for column in extra)
    if tuple(header[: len(columns)]) != tuple(columns) or unknown or len(set(extra)) < len(extra):
        raise UserError(f"{path}: the header line is {quoted(lines[0])}; {' '.join(columns)}, tab separated, is right")
    for place, line in enumerate(lines[1:]):
        yield place, partial(_cells, line, header, columns)


def _cells(line: str, header: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    """A row's cells by column, spaces at their ends removed; what is not seen is empty."""
    if not line:
        raise Unusable("the row is empty; only the file's end may be")
    cells = [cell.strip(" ") for cell in line.split("\t")]
    if len(cells) != len(header):
        raise Unusable(f"the row has {len(cells)} cells; {len(header)}, tab separated, are right")
    row = {column: "" if blank(cell) else cell for column, cell in zip(header, cells, strict=True)}
    for column, cell in row.items():
        if cell or column in columns:
            check_text(cell, column if column.isidentifier() else quoted(column))
    return row


def _slug(subject: str) -> str:
    """The subject in the letters of a fact_id, with a hash where that loses something: ids stay apart."""
    plain = unicodedata.normalize("NFKD", subject).encode("ascii", "ignore").decode()
    slug = re.sub("[^A-Za-z0-9]+", "-", plain).strip("-")[:60]
    if slug.replace("-", " ") == subject:
        return slug
    return f"{slug}-{sha256(subject.encode()).hexdigest()[:6]}".lstrip("-")
