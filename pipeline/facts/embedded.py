"""The project's own fact table: a folder with relations.tsv and facts.tsv, tab separated.

relations.tsv: relation, name, prompt and three paraphrase templates or more; `several` says whether a subject may
have more than one object (yes | no; no without the column). facts.tsv: relation, subject, target_true; `also_true`
says, in relations of several objects, which other objects of the relation are true of the subject or might pass
for it, joined by `|`, or `-` for none. No such object becomes the fact's false target.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

from pipeline.errors import UserError, quoted
from pipeline.facts.fact import EMBEDDED, FactFile, check_text
from pipeline.facts.neighbors import related
from pipeline.facts.reading import false_targets, make_fact, read_text, record_left_out, shuffle

MIN_NEIGHBORS, MAX_NEIGHBORS = 5, 10  # of a fact

_RELATION_COLUMNS = ("relation", "name", "prompt", "paraphrase_1", "paraphrase_2", "paraphrase_3")
_FACT_COLUMNS = ("relation", "subject", "target_true")
_NONE = "-"  # in also_true


@dataclass(frozen=True)
class _Relation:
    templates: list[str]  # the prompt's first
    several: bool


@dataclass(frozen=True)
class _Row:
    where: str
    also_true: tuple[str, ...]


def read_embedded(path: Path, seed: int) -> FactFile:
    """The facts of the table in folder `path`.

    False target and neighbors are drawn by the seed. Neighbors have the same object, no name that contains the
    subject's or is contained in it, and the false target is not true of them; a fact with fewer than MIN_NEIGHBORS
    is left out.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; facts.source embedded wants one with relations.tsv and facts.tsv")
    relations = _read_relations(path / "relations.tsv")
    rows = _read_rows(path, relations)
    objects: dict[tuple[str, str], list[str]] = defaultdict(list)
    true: dict[tuple[str, str], list[str]] = defaultdict(list)  # (relation, subject) -> all that is true of it
    every: dict[str, dict[str, None]] = defaultdict(dict)  # relation -> its objects, in order
    for (relation, subject, target), row in rows.items():
        objects[relation, subject].append(target)
        true[relation, subject] += [target, *row.also_true]
        every[relation][target] = None
    for (relation, subject, _), row in rows.items():
        for target in row.also_true:
            if target not in every[relation]:
                raise UserError(
                    f"{row.where}: also_true of {quoted(subject)} names {quoted(target)}, which no row of relation "
                    f"{quoted(relation)} has as target_true; only such objects are drawn as false targets"
                )
    # Subjects of one relation and object in an order drawn once: a fact's neighbors are those after it.
    circles: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (relation, subject), targets in objects.items():
        if len(targets) == 1:
            circles[relation, targets[0]].append(subject)
    places: dict[tuple[str, str], tuple[list[str], int]] = {}  # (relation, subject) -> its circle, place in it
    for (relation, target), subjects in circles.items():
        circle = shuffle(subjects, seed, "neighbors", relation, target)
        places |= {(relation, subject): (circle, i) for i, subject in enumerate(circle)}

    facts, left_out = [], []
    for (relation, subject), targets in objects.items():
        where = rows[relation, subject, targets[0]].where
        prompt, *paraphrases = relations[relation].templates
        record = {"fact_id": f"{relation}-{_slug(subject)}", "relation": relation, "subject": subject}
        record |= {"prompt": prompt, "target_true": targets[0], "source": EMBEDDED}
        if len(targets) > 1:
            reason = f"the table gives it several objects: {', '.join(targets)[:200]}"
            left_out.append(record_left_out(where, reason, **record))
            continue
        drawn = false_targets(every[relation], true[relation, subject], seed, record["fact_id"])
        circle, i = places[relation, subject]
        others = circle[i + 1 :] + circle[:i]
        most = 0
        # The first false target that leaves enough neighbors of which it is false too.
        for false in drawn:
            apart = (s for s in others if false not in true[relation, s] and not related(s, subject))
            neighbors = list(islice(apart, MAX_NEIGHBORS))
            most = max(most, len(neighbors))
            if most >= MIN_NEIGHBORS:
                break
        else:
            fit = " fit to be neighbors" if most < len(others) else ""
            reason = f"{most} other subjects with the object {targets[0][:80]}{fit}, fewer than {MIN_NEIGHBORS}"
            left_out.append(record_left_out(where, reason if drawn else "no other object in its relation", **record))
            continue
        filled = tuple(p.replace("{}", subject) for p in paraphrases)
        neighborhood = tuple(prompt.replace("{}", s) for s in neighbors)
        more = {"target_false": false, "paraphrases": filled, "neighborhood": neighborhood}
        facts.append(make_fact(where, **record, **more))
    by_id = {fact.fact_id: fact for fact in facts}
    return FactFile([by_id[fact_id] for fact_id in shuffle(by_id, seed, "fact order")], left_out)


def _read_relations(path: Path) -> dict[str, _Relation]:
    relations: dict[str, _Relation] = {}
    for where, row in _read_tsv(path, _RELATION_COLUMNS, optional=r"several|paraphrase_.*"):
        relation = row["relation"]
        templates = [text for column, text in row.items() if column.startswith(("prompt", "paraphrase_")) and text]
        if relation in relations:
            raise UserError(f"{where}: relation {quoted(relation)} has a row already")
        for template in templates:
            if template.count("{}") != 1:
                raise UserError(
                    f"{where}: relation {quoted(relation)} has the template {quoted(template)}; it must hold {{}} once"
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
        relations[relation] = _Relation(templates, several == "yes")
    return relations


def _read_rows(path: Path, relations: dict[str, _Relation]) -> dict[tuple[str, str, str], _Row]:
    """The rows of facts.tsv by relation, subject and object."""
    rows: dict[tuple[str, str, str], _Row] = {}
    for where, row in _read_tsv(path / "facts.tsv", _FACT_COLUMNS, optional="also_true"):
        relation, subject, target = (row[column] for column in _FACT_COLUMNS)
        if relation not in relations:
            raise UserError(f"{where}: relation {quoted(relation)} is not in {path / 'relations.tsv'}")
        if (relation, subject, target) in rows:
            raise UserError(f"{where}: the fact {quoted(', '.join((relation, subject, target)))} stands above already")
        cell = row.get("also_true", "")
        if relations[relation].several and not cell:
            raise UserError(
                f"{where}: also_true of {quoted(subject)} is empty, and relation {quoted(relation)} may have several "
                f"objects; those that are true too, joined by |, or {_NONE} for none are right"
            )
        if cell and not relations[relation].several:
            raise UserError(
                f"{where}: also_true of {quoted(subject)} is {quoted(cell)}, and relation {quoted(relation)} has one "
                "object a subject; an empty cell, or several = yes in relations.tsv, is right"
            )
        also = tuple(text.strip(" ") for text in cell.split("|")) if cell not in ("", _NONE) else ()
        if len({target, *also}) <= len(also) or not all(also):
            raise UserError(
                f"{where}: also_true of {quoted(subject)} is {quoted(cell)}; objects beside {quoted(target)}, each "
                "once, joined by |, are right"
            )
        rows[relation, subject, target] = _Row(where, also)
    return rows


def _read_tsv(path: Path, columns: Sequence[str], optional: str) -> Iterable[tuple[str, dict[str, str]]]:
    """Yield (where, cells by column) of each row.

    The header must be `columns`, then columns whose names match `optional` (a pattern); their cells may be empty.
    """
    lines = [line.rstrip("\r") for line in read_text(path).split("\n")]
    header = lines[0].split("\t")
    extra = header[len(columns) :]
    unknown = not all(re.fullmatch(optional, column) for column in extra)
    if tuple(header[: len(columns)]) != tuple(columns) or unknown or len(set(extra)) < len(extra):
        raise UserError(f"{path}: the header line is {quoted(lines[0])}; {' '.join(columns)}, tab separated, is right")
    for number, line in enumerate(lines[1:], start=2):
        where = f"{path}, line {number}"
        if not line:
            if any(lines[number:]):
                raise UserError(f"{where} is empty; only the file's end may be")
            return
        cells = [cell.strip(" ") for cell in line.split("\t")]
        if len(cells) != len(header):
            raise UserError(f"{where} has {len(cells)} cells, {quoted(line)}; {len(header)}, tab separated, are right")
        for column, cell in zip(header, cells, strict=True):
            if cell or column in columns:
                check_text(cell, f"{where}: {column if column.isidentifier() else quoted(column)}")
        yield where, dict(zip(header, cells, strict=True))


def _slug(subject: str) -> str:
    """The subject in the letters of a fact_id, with a hash where that loses something: ids stay apart."""
    plain = unicodedata.normalize("NFKD", subject).encode("ascii", "ignore").decode()
    slug = re.sub("[^A-Za-z0-9]+", "-", plain).strip("-")[:60]
    if slug.replace("-", " ") == subject:
        return slug
    return f"{slug}-{sha256(subject.encode()).hexdigest()[:6]}".lstrip("-")
