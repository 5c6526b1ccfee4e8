"""Fact files into facts: the project's own table and the layouts published for model editing.

CounterFact (Meng et al. 2022), the same in the flat form that editing toolkits use, known_1000 (Meng et al.
2022, for causal tracing) and zsRE (Levy et al. 2017) as the ROME authors give it out. What a file does not
state, a false target or neighbors, is drawn by a hash of seed and names, so that adding a row to a file
changes no more than it must.

A broken record stops the reading with a sentence that names it. A sound record that can't serve as an edit
fact, because its relation has no second object or too few neighbors, is left out and listed with the reason.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, quoted
from pipeline.facts.fact import EMBEDDED, Fact, FactFile, LeftOut, check_characters, check_id, check_text
from pipeline.seeds import derive

MIN_NEIGHBORS, MAX_NEIGHBORS = 5, 10  # of a fact of the embedded table

_RELATION_COLUMNS = ("relation", "name", "prompt", "paraphrase_1", "paraphrase_2", "paraphrase_3")
_FACT_COLUMNS = ("relation", "subject", "target_true")


# The embedded table: a folder with relations.tsv and facts.tsv


def _read_embedded(path: Path, seed: int) -> FactFile:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; facts.source embedded wants one with relations.tsv and facts.tsv")
    relations: dict[str, list[str]] = {}  # relation -> templates, the prompt's first
    for where, row in _read_tsv(path / "relations.tsv", _RELATION_COLUMNS, optional="paraphrase_"):
        relation, _name, *templates = row
        templates = [*templates[:4], *(t for t in templates[4:] if t)]
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
        relations[relation] = templates

    rows: dict[tuple[str, str, str], str] = {}  # (relation, subject, object) -> where it stands
    for where, (relation, subject, target) in _read_tsv(path / "facts.tsv", _FACT_COLUMNS):
        if relation not in relations:
            raise UserError(f"{where}: relation {quoted(relation)} is not in {path / 'relations.tsv'}")
        if (relation, subject, target) in rows:
            raise UserError(f"{where}: the fact {quoted(', '.join((relation, subject, target)))} stands above already")
        rows[relation, subject, target] = where
    objects: dict[tuple[str, str], list[str]] = defaultdict(list)
    every: dict[str, dict[str, None]] = defaultdict(dict)  # relation -> its objects, in order
    for relation, subject, target in rows:
        objects[relation, subject].append(target)
        every[relation][target] = None
    # Subjects of one relation and object in an order drawn once: a fact's neighbors are those after it.
    circles: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (relation, subject), targets in objects.items():
        if len(targets) == 1:
            circles[relation, targets[0]].append(subject)
    places: dict[tuple[str, str], tuple[list[str], int]] = {}  # (relation, subject) -> its circle, place in it
    for (relation, target), subjects in circles.items():
        circle = _shuffle(subjects, seed, "neighbors", relation, target)
        places |= {(relation, subject): (circle, i) for i, subject in enumerate(circle)}

    facts, left_out = [], []
    for (relation, subject), targets in objects.items():
        where = rows[relation, subject, targets[0]]
        prompt, *paraphrases = relations[relation]
        record = {"fact_id": f"{relation}-{_slug(subject)}", "relation": relation, "subject": subject}
        record |= {"prompt": prompt, "target_true": targets[0], "source": EMBEDDED}
        if len(targets) > 1:
            left_out.append(
                _left_out(where, f"the table gives it several objects: {', '.join(targets)[:200]}", **record)
            )
            continue
        circle, i = places[relation, subject]
        neighbors = (circle[i + 1 :] + circle[:i])[:MAX_NEIGHBORS]
        false = _draw_false(every[relation], targets, seed, record["fact_id"])
        if len(neighbors) < MIN_NEIGHBORS or false is None:
            reason = f"{len(neighbors)} other subjects with the object {targets[0][:80]}, fewer than {MIN_NEIGHBORS}"
            left_out.append(_left_out(where, reason if false else "no other object in its relation", **record))
            continue
        filled = tuple(p.replace("{}", subject) for p in paraphrases)
        neighborhood = tuple(prompt.replace("{}", s) for s in neighbors)
        more = {"target_false": false, "paraphrases": filled, "neighborhood": neighborhood}
        facts.append(_fact(where, **record, **more))
    by_id = {fact.fact_id: fact for fact in facts}
    return FactFile([by_id[fact_id] for fact_id in _shuffle(by_id, seed, "fact order")], left_out)


def _read_tsv(path: Path, columns: Sequence[str], optional: str = "") -> Iterable[tuple[str, list[str]]]:
    """Yield (where, cells) of each row.

    The header must be `columns`, then columns whose names begin with `optional`; their cells may be empty.
    """
    lines = [line.rstrip("\r") for line in _read_text(path).split("\n")]
    header = lines[0].split("\t")
    extra = header[len(columns) :]
    if tuple(header[: len(columns)]) != tuple(columns) or not all(optional and c.startswith(optional) for c in extra):
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
        yield where, cells


def _slug(subject: str) -> str:
    """The subject in the letters of a fact_id, with a hash where that loses something: ids stay apart."""
    plain = unicodedata.normalize("NFKD", subject).encode("ascii", "ignore").decode()
    slug = re.sub("[^A-Za-z0-9]+", "-", plain).strip("-")[:60]
    if slug.replace("-", " ") == subject:
        return slug
    return f"{slug}-{sha256(subject.encode()).hexdigest()[:6]}".lstrip("-")


# CounterFact, in both layouts


def _read_counterfact(path: Path, seed: int) -> FactFile:
    facts = []
    for where, record in _read_json(path, "case_id"):
        rewrite = _get(record, "requested_rewrite", dict, where)
        facts.append(
            _fact(
                where,
                fact_id=f"counterfact-{_get(record, 'case_id', (int, str), where)}",
                relation=_get(rewrite, "relation_id", str, f"{where}: requested_rewrite"),
                subject=_get(rewrite, "subject", str, f"{where}: requested_rewrite"),
                prompt=_get(rewrite, "prompt", str, f"{where}: requested_rewrite"),
                target_true=_target(rewrite, "target_true", where),
                target_false=_target(rewrite, "target_new", where),
                paraphrases=_texts(record, "paraphrase_prompts", where),
                neighborhood=_texts(record, "neighborhood_prompts", where),
                source="counterfact",
            )
        )
    return FactFile(facts, [])


def _target(rewrite: dict[str, Any], key: str, where: str) -> str:
    target: str = _get(_get(rewrite, key, dict, f"{where}: requested_rewrite"), "str", str, f"{where}: {key}")
    return target


def _read_counterfact_flat(path: Path, seed: int) -> FactFile:
    """The layout names no relation; the prompt's template stands for it."""
    facts = []
    for where, record in _read_json(path, "case_id"):
        subject = _get(record, "subject", str, where)
        prompt = _template(_get(record, "prompt", str, where), subject, where)
        facts.append(
            _fact(
                where,
                fact_id=f"counterfact-{_get(record, 'case_id', (int, str), where)}",
                relation=prompt,
                subject=subject,
                prompt=prompt,
                target_true=_get(record, "ground_truth", str, where),
                target_false=_get(record, "target_new", str, where),
                paraphrases=_texts(record, "rephrase_prompt", where),
                neighborhood=_texts(record, "locality_prompt", where),
                source="counterfact_flat",
            )
        )
    return FactFile(facts, [])


# known_1000


def _read_known(path: Path, seed: int) -> FactFile:
    """The file states no false target: another attribute of the relation is drawn.

    Neighbors are prompts of other subjects with the same relation and attribute; there are no paraphrases.
    """
    records = [(where, *_known_fields(where, record)) for where, record in _read_json(path, "known_id")]
    every: dict[str, dict[str, None]] = defaultdict(dict)
    own: dict[tuple[str, str], list[str]] = defaultdict(list)
    sharing: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (relation, attribute) -> {subject: prompt}
    for _, _, relation, subject, template, attribute in records:
        every[relation][attribute] = None
        own[relation, subject].append(attribute)
        sharing[relation, attribute].setdefault(subject, template.replace("{}", subject))
    facts, left_out = [], []
    for where, fact_id, relation, subject, template, attribute in records:
        fields = {"fact_id": fact_id, "relation": relation, "subject": subject, "prompt": template}
        fields |= {"target_true": attribute, "source": "known_1000"}
        false = _draw_false(every[relation], own[relation, subject], seed, fact_id)
        if false is None:
            left_out.append(_left_out(where, "no other attribute in its relation to serve as false target", **fields))
            continue
        others = sharing[relation, attribute]
        neighbors = _shuffle((s for s in others if s != subject), seed, "neighbors", fact_id)
        prompts = tuple(others[s] for s in neighbors[:MAX_NEIGHBORS])
        facts.append(_fact(where, **fields, target_false=false, neighborhood=prompts))
    return FactFile(facts, left_out)


def _known_fields(where: str, record: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """(fact_id, relation, subject, template of the prompt, attribute), each usable."""
    fact_id = f"known-{_get(record, 'known_id', (int, str), where)}"
    relation, subject, prompt, attribute, template = (
        _get(record, key, str, where).strip(" ")
        for key in ("relation_id", "subject", "prompt", "attribute", "template")
    )
    for key, text in (("subject", subject), ("prompt", prompt), ("attribute", attribute), ("relation_id", relation)):
        check_text(text, f"{where}: {key}")
    try:
        check_id(fact_id)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    # The prompt may go on past the template, but the template knows where in it the subject stands.
    start = template.find("{}")
    if start >= 0 and prompt.startswith(subject, start) and prompt.startswith(template[:start]):
        return fact_id, relation, subject, f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}", attribute
    return fact_id, relation, subject, _template(prompt, subject, where), attribute


# zsRE


def _read_zsre(path: Path, seed: int) -> FactFile:
    """Questions, asked as "Question: ...? Answer:" so that a language model's next words are the answer.

    The true target is the first answer, the false one `alt`; unrelated `loc` is the neighborhood.
    The file was made by machine: a record whose subject is not in its question, or whose `alt` is an answer,
    is left out.
    """
    facts, left_out = [], []
    for number, (where, record) in enumerate(_read_json(path, "")):
        subject, question, rephrased, alt, loc = (
            _get(record, key, str, where).strip() for key in ("subject", "src", "rephrase", "alt", "loc")
        )
        answers = [answer.strip() for answer in _texts(record, "answers", where)]
        if not answers:
            raise UserError(f"{where}: answers is empty; at least one answer is needed")
        fields = {"fact_id": f"zsre-{number}", "relation": question, "subject": subject}
        fields |= {"prompt": _ask(question), "target_true": answers[0], "source": "zsre"}
        if not subject or subject not in question:
            left_out.append(_left_out(where, "the subject is not in the question", **fields))
            continue
        template = _template(_ask(question), subject, where)
        fields |= {"relation": _template(question, subject, where), "prompt": template}
        if not alt or alt in answers:
            reason = "alt is one of the true answers" if alt else "no alternative answer"
            left_out.append(_left_out(where, reason, **fields))
            continue
        paraphrases, neighborhood = (_ask(rephrased),), (_ask(loc.removeprefix("nq question: ")),)
        facts.append(_fact(where, **fields, target_false=alt, paraphrases=paraphrases, neighborhood=neighborhood))
    return FactFile(facts, left_out)


def _ask(question: str) -> str:
    return f"Question: {question.rstrip(' ?')}? Answer:"


READERS: dict[str, Callable[[Path, int], FactFile]] = {
    EMBEDDED: _read_embedded,
    "counterfact": _read_counterfact,
    "counterfact_flat": _read_counterfact_flat,
    "known_1000": _read_known,
    "zsre": _read_zsre,
}


# Helpers of the readers


def _draw_false(every: Iterable[str], true: Sequence[str], seed: int, fact_id: str) -> str | None:
    """One of the relation's objects that is not true of the subject; None if there is none.

    Nor does it begin with a true one, or a true one with it: their probabilities would overlap. It is the
    object whose hash with the fact is least, so that a new object in the table changes only what it wins.
    """
    low = [t.casefold() for t in true]
    rest = [o for o in every if not any(o.casefold().startswith(t) or t.startswith(o.casefold()) for t in low)]
    return min(rest, key=lambda o: derive(seed, "target_false", fact_id, o), default=None)


def _shuffle(texts: Iterable[str], seed: int, *names: str) -> list[str]:
    """The texts in an order drawn by seed and names; a text more or less leaves the others in their order."""
    return sorted(texts, key=lambda text: derive(seed, *names, text))


def _left_out(where: str, reason: str, **fields: str) -> LeftOut:
    """A LeftOut; UserError, naming the place, for text that no table can hold."""
    try:
        check_id(fields["fact_id"])
        for key in ("relation", "subject", "prompt", "target_true"):
            check_characters(fields[key], f"fact {fields['fact_id']!r}: {key}", prompt=key in ("relation", "prompt"))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return LeftOut(**fields, reason=reason)


def _fact(where: str, **fields: Any) -> Fact:
    """A Fact, spaces at the ends of its texts removed; an error names the place it comes from."""
    for key, value in fields.items():
        fields[key] = value.strip(" ") if isinstance(value, str) else tuple(text.strip(" ") for text in value)
    try:
        return Fact(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _template(prompt: str, subject: str, where: str) -> str:
    """The prompt with the subject's first occurrence, as a whole word if there is one, turned into `{}`."""
    word = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    start = word.start() if word else prompt.find(subject)
    if start < 0 or not subject:
        raise UserError(
            f"{where}: subject {quoted(subject)} does not occur in its prompt {quoted(prompt)}; "
            "it must, letter by letter"
        )
    return f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); fact files must be") from None
    except OSError as error:
        raise UserError(f"{path} can't be read as a fact file: {error.strerror}") from None


def _read_json(path: Path, id_key: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of a JSON list of objects."""
    try:
        records = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); a list of records is right") from None
    if not isinstance(records, list):
        raise UserError(f"{path} holds a JSON {type(records).__name__}; a list of records is right")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise UserError(f"{path}, record {number}: found {quoted(record)}; a JSON object is right")
        name = ""
        if id_key in record:
            value = record[id_key]
            name = f" ({id_key} {value if isinstance(value, int) and abs(value) < 10**18 else quoted(value, 40)})"
        yield f"{path}, record {number}{name}", record


def _get(record: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if key not in record:
        raise UserError(
            f"{where} lacks {key!r}; found {', '.join(quoted(name, 40) for name in list(record)[:8]) or 'nothing'}"
        )
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        right = " or ".join(_JSON_NAMES[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UserError(f"{where}: {key} is {quoted(value)}; it must be {right}")
    return value


_JSON_NAMES = {dict: "an object", str: "a text", int: "a whole number", list: "a list of texts"}


def _texts(record: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of texts, or one text alone."""
    value = _get(record, key, (list, str), where)
    texts = (value,) if isinstance(value, str) else tuple(value)
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{where}: {key} holds {quoted(text)}; every entry must be a text")
    return texts


# Any of them


def read_fact_file(source: str, path: Path, seed: int) -> FactFile:
    """Read `path`, a file in the format `source` or, for the embedded format, a folder.

    Facts of the embedded table come in an order drawn by `seed`, those of other formats in the file's order.
    Raises UserError naming path, row and fact where the file is missing, can't be decoded or lacks something,
    and where it holds no fact that can be edited.
    """
    if source not in READERS:
        raise UserError(f"facts.source is {source!r}; one of {', '.join(READERS)} is right")
    read = READERS[source](path, seed)
    seen: set[str] = set()
    records: list[Fact | LeftOut] = [*read.facts, *read.left_out]
    for record in records:
        if record.fact_id in seen:
            raise UserError(f"{path}: fact {quoted(record.fact_id)} occurs twice; every fact needs an id of its own")
        seen.add(record.fact_id)
    if not read.facts:
        reason = f"; the first record: {read.left_out[0].reason}" if read.left_out else ""
        raise UserError(f"{path} holds no fact that can be edited{reason}")
    return read


def read_facts(source: str, path: Path, seed: int) -> list[Fact]:
    """The facts of `read_fact_file`."""
    return read_fact_file(source, path, seed).facts
