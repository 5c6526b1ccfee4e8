"""Fact files into facts: the layouts published for model editing, and the project's own table (embedded.py).

CounterFact (Meng et al. 2022), the same in the flat form that editing toolkits use, known_1000 (Meng et al.
2022, for causal tracing) and zsRE (Levy et al. 2017) as the ROME authors give it out. What a file does not
state, a false target or neighbors, is drawn by a hash of seed and names, so that adding a row to a file
changes no more than it must. Neighborhood prompts about the edited subject, a part of it, or something that
contains it are dropped (neighbors.py).

A record that can't be used, because a field is missing, of the wrong kind or too long, or because its relation has
no second object or too few neighbors, is left out and listed with the reason. Prompts of which nothing is seen are
taken for absent. What is wrong with the file as a whole stops the reading.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.facts.embedded import MAX_NEIGHBORS, read_embedded
from pipeline.facts.fact import EMBEDDED, Fact, FactFile, Unusable, blank, check_text
from pipeline.facts.neighbors import Templates, related
from pipeline.facts.reading import Reading, commonest, false_targets, read_text, shuffle

# CounterFact, in both layouts


def _read_counterfact(path: Path, seed: int, most: int | None) -> FactFile:
    read = Reading(path)
    for place, record in enumerate(_read_json(path)[:most]):
        with read.record(place):
            rewrite = _get(record, "requested_rewrite", dict)
            read.add(
                fact_id=f"counterfact-{_get(record, 'case_id', (int, str))}",
                relation=_get(rewrite, "relation_id", str, "requested_rewrite"),
                subject=_get(rewrite, "subject", str, "requested_rewrite"),
                prompt=_get(rewrite, "prompt", str, "requested_rewrite"),
                target_true=_target(rewrite, "target_true"),
                target_false=_target(rewrite, "target_new"),
                paraphrases=_texts(record, "paraphrase_prompts"),
                neighborhood=_texts(record, "neighborhood_prompts"),
                source="counterfact",
            )
    return read.done(_apart(read.facts))


def _target(rewrite: dict[str, Any], key: str) -> str:
    target: str = _get(_get(rewrite, key, dict, "requested_rewrite"), "str", str, key)
    return target


def object_ids(path: Path) -> dict[str, str]:
    """Wikidata's ids (Q142) of the objects that a CounterFact file in its own layout names; records without are passed
    over.
    """
    found: dict[str, str] = {}
    for record in _read_json(path):
        rewrite = record.get("requested_rewrite") if isinstance(record, dict) else None
        for key in ("target_true", "target_new"):
            target = rewrite.get(key) if isinstance(rewrite, dict) else None
            if isinstance(target, dict) and isinstance(target.get("str"), str) and isinstance(target.get("id"), str):
                found.setdefault(target["str"], target["id"])
    return found


def _read_counterfact_flat(path: Path, seed: int, most: int | None) -> FactFile:
    """The layout names no relation; the prompt's template stands for it."""
    read = Reading(path)
    for place, record in enumerate(_read_json(path)[:most]):
        with read.record(place):
            subject = _get(record, "subject", str)
            prompt = _template(_get(record, "prompt", str), subject)
            read.add(
                fact_id=f"counterfact-{_get(record, 'case_id', (int, str))}",
                relation=prompt,
                subject=subject,
                prompt=prompt,
                target_true=_get(record, "ground_truth", str),
                target_false=_get(record, "target_new", str),
                paraphrases=_texts(record, "rephrase_prompt"),
                neighborhood=_texts(record, "locality_prompt"),
                source="counterfact_flat",
            )
    return read.done(_apart(read.facts))


# known_1000


def _read_known(path: Path, seed: int, most: int | None) -> FactFile:
    """The file states no false target: another attribute of the relation is drawn.

    Neighbors are prompts of other subjects with the same relation and attribute, of which the false target is not
    true; there are no paraphrases.
    """
    read = Reading(path)
    records: dict[int, dict[str, str]] = {}
    for place, record in enumerate(_read_json(path)[:most]):
        with read.record(place):
            records[place] = _known_fields(record)
    every: dict[str, dict[str, None]] = defaultdict(dict)
    own: dict[tuple[str, str], list[str]] = defaultdict(list)
    sharing: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # (relation, attribute) -> {subject: prompt}
    for fields in records.values():
        relation, subject, attribute = fields["relation"], fields["subject"], fields["target_true"]
        every[relation][attribute] = None
        own[relation, subject].append(attribute)
        sharing[relation, attribute].setdefault(subject, fields["prompt"].replace("{}", subject))
    for place, fields in records.items():
        relation, subject, attribute = fields["relation"], fields["subject"], fields["target_true"]
        drawn = false_targets(every[relation], own[relation, subject], seed, fields["fact_id"])
        with read.record(place):
            if not drawn:
                read.leave_out(place, "no other attribute in its relation to serve as false target", **fields)
                continue
            others = sharing[relation, attribute]
            apart = (s for s in others if not related(s, subject) and drawn[0] not in own[relation, s])
            neighbors = shuffle(apart, seed, "neighbors", fields["fact_id"])
            prompts = tuple(others[s] for s in neighbors[:MAX_NEIGHBORS])
            read.add(**fields, target_false=drawn[0], neighborhood=prompts)
    return read.done()


def _known_fields(record: Any) -> dict[str, str]:
    """The record's part of a fact, each field usable: they are also the false target and the neighbors of others."""
    fact_id = f"known-{_get(record, 'known_id', (int, str))}"
    relation, subject, prompt, attribute, template = (
        _get(record, key, str).strip(" ") for key in ("relation_id", "subject", "prompt", "attribute", "template")
    )
    for key, text in (("subject", subject), ("prompt", prompt), ("attribute", attribute), ("relation_id", relation)):
        check_text(text, key)
    # The prompt may go on past the template, but the template knows where in it the subject stands.
    start = template.find("{}")
    if start >= 0 and prompt.startswith(subject, start) and prompt.startswith(template[:start]):
        place = f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"
    else:
        place = _template(prompt, subject)
    fields = {"fact_id": fact_id, "relation": relation, "subject": subject, "prompt": place}
    fields |= {"target_true": attribute, "source": "known_1000"}
    # Whatever the false target will be, the rest must serve, the prompt also as a neighbor.
    Fact(**fields, target_false="b" if attribute == "a" else "a", neighborhood=(prompt,))
    return fields


# zsRE


def _read_zsre(path: Path, seed: int, most: int | None) -> FactFile:
    """Questions, asked as "Question: ...? Answer:" so that a language model's next words are the answer.

    The true target is the first answer, the false one `alt`; unrelated `loc` is the neighborhood.
    The file was made by machine: a record whose subject is not in its question, or whose `alt` is an answer,
    is left out.
    """
    read = Reading(path)
    for place, record in enumerate(_read_json(path)[:most]):
        with read.record(place):
            subject, question, rephrased, alt, loc = (
                _get(record, key, str).strip() for key in ("subject", "src", "rephrase", "alt", "loc")
            )
            answers = [answer.strip() for answer in _texts(record, "answers")]
            for key, text in (("subject", subject), ("src", _body(question)), ("answers", "".join(answers))):
                if blank(text):
                    raise Unusable(f"{key} is empty")
            fields = {"fact_id": f"zsre-{place}", "relation": question, "subject": subject}
            fields |= {"prompt": f"Question: {_body(question)}? Answer:", "target_true": answers[0], "source": "zsre"}
            if subject not in question:
                read.leave_out(place, "the subject is not in the question", **fields)
                continue
            template = f"Question: {_template(f'{_body(question)}?', subject)} Answer:"
            fields |= {"relation": _template(question, subject), "prompt": template}
            if blank(alt) or alt in answers:
                reason = "no alternative answer" if blank(alt) else "alt is one of the true answers"
                read.leave_out(place, reason, **fields)
                continue
            read.add(**fields, target_false=alt, paraphrases=_ask(rephrased), neighborhood=_ask(loc))
    return read.done(_apart(read.facts))


def _ask(question: str) -> tuple[str, ...]:
    """The prompt that asks the question, or none where there is no question."""
    body = _body(question)
    return () if blank(body) else (f"Question: {body}? Answer:",)


def _body(question: str) -> str:
    """The question without its mark and the prefix of those from Natural Questions; empty if nothing else is seen."""
    question = question.removeprefix("nq question:").strip()
    return "" if blank(question.replace("?", "")) else question.rstrip(" ?")


def _read_table(path: Path, seed: int, most: int | None) -> FactFile:
    """The project's own table has no first records: its facts come in an order that is drawn."""
    if most is not None:
        raise UserError(f"{path}: facts.records is {most} but must be null where facts.source is {EMBEDDED}")
    return read_embedded(path, seed)


# Each takes the file, the run's seed, and of how many first records the facts are read (None: of all).
READERS: dict[str, Callable[[Path, int, int | None], FactFile]] = {
    EMBEDDED: _read_table,
    "counterfact": _read_counterfact,
    "counterfact_flat": _read_counterfact_flat,
    "known_1000": _read_known,
    "zsre": _read_zsre,
}


# Helpers of the readers


def _apart(facts: list[Fact]) -> list[Fact]:
    """The facts without the neighborhood prompts that are about the fact's subject or a part of it."""
    templates = Templates(fact.prompt for fact in facts)
    return [replace(fact, neighborhood=templates.unrelated(fact.neighborhood, fact.subject)) for fact in facts]


def _template(prompt: str, subject: str) -> str:
    """The prompt with the subject's first occurrence, as a whole word if there is one, turned into `{}`."""
    if blank(subject):
        raise Unusable("subject is empty")
    word = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    start = word.start() if word else prompt.find(subject)
    if start < 0:
        raise Unusable("subject does not occur in its prompt; it must, letter by letter")
    return f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"


def _read_json(path: Path) -> list[Any]:
    """The items of a JSON list. UserError where the file is no such list."""
    try:
        records = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); a list of records is right") from None
    if not isinstance(records, list):
        raise UserError(f"{path} holds a JSON {type(records).__name__}; a list of records is right")
    return records


def _get(record: Any, key: str, kind: type | tuple[type, ...], of: str = "") -> Any:
    """The record's value of that kind. of: where in the record it is, if not at its top. Raises Unusable."""
    if not isinstance(record, dict):
        raise Unusable(f"{of or 'the record'} is {_kind(record)}; a JSON object is right")
    if key not in record:
        raise Unusable(f"{of or 'the record'} lacks {key!r}")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        right = " or ".join(_JSON_NAMES[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise Unusable(f"{f'{of}.' if of else ''}{key} is {_kind(value)}; {right} is right")
    return value


_JSON_NAMES = {dict: "an object", str: "a text", int: "a whole number", list: "a list of texts"}


def _kind(value: Any) -> str:
    """What a value is in JSON's words."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds: dict[type, str] = {dict: "an object", str: "a text", list: "a list"}
    return kinds.get(type(value), "a number")


def _texts(record: Any, key: str) -> tuple[str, ...]:
    """A list of texts, or one text alone, without those of which nothing is seen. Raises Unusable."""
    value = _get(record, key, (list, str))
    texts = [value] if isinstance(value, str) else value
    for text in texts:
        if not isinstance(text, str):
            raise Unusable(f"{key} holds {_kind(text)}; every entry must be a text")
    return tuple(text for text in texts if not blank(text))


# Any of them


def read_fact_file(source: str, path: Path, seed: int, records: int | None = None) -> FactFile:
    """Read `path`, a file in the format `source` or, for the embedded format, a folder.

    records: so many first records of the file, as if it had no others; None reads all.

    Facts of the embedded table come in an order drawn by `seed`, those of other formats in the file's order.
    Records that can't be used are left out, each with its reason.
    Raises UserError naming path and place where the file is missing, can't be decoded or has another layout, and
    where it holds no fact that can be edited.
    """
    if source not in READERS:
        raise UserError(f"facts.source is {source!r}; one of {', '.join(READERS)} is right")
    read = READERS[source](path, seed, records)
    if not read.facts:
        why = f"none of {len(read.left_out)} records, counted from 0, is usable: {commonest(read.left_out)}"
        raise UserError(f"{path} holds no fact that can be edited; {why if read.left_out else 'it has no records'}")
    return read


def read_facts(source: str, path: Path, seed: int) -> list[Fact]:
    """The facts of `read_fact_file`."""
    return read_fact_file(source, path, seed).facts
