"""Fact files into facts: the layouts published for model editing, and the project's own table (embedded.py).

CounterFact (Meng et al. 2022), the same in the flat form that editing toolkits use, known_1000 (Meng et al.
2022, for causal tracing) and zsRE (Levy et al. 2017) as the ROME authors give it out. What a file does not
state, a false target or neighbors, is drawn by a hash of seed and names, so that adding a row to a file
changes no more than it must. Neighborhood prompts about the edited subject, a part of it, or something that
contains it are dropped (neighbors.py).

A broken record stops the reading with a sentence that names it. A sound record that can't serve as an edit
fact, because its relation has no second object or too few neighbors, is left out and listed with the reason.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, quoted
from pipeline.facts.embedded import MAX_NEIGHBORS, read_embedded
from pipeline.facts.fact import EMBEDDED, Fact, FactFile, LeftOut, check_id, check_text
from pipeline.facts.neighbors import Templates, related
from pipeline.facts.reading import false_targets, make_fact, read_text, record_left_out, shuffle

# CounterFact, in both layouts


def _read_counterfact(path: Path, seed: int) -> FactFile:
    facts = []
    for where, record in _read_json(path, "case_id"):
        rewrite = _get(record, "requested_rewrite", dict, where)
        facts.append(
            make_fact(
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
    return FactFile(_apart(facts), [])


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
            make_fact(
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
    return FactFile(_apart(facts), [])


# known_1000


def _read_known(path: Path, seed: int) -> FactFile:
    """The file states no false target: another attribute of the relation is drawn.

    Neighbors are prompts of other subjects with the same relation and attribute, of which the false target is not
    true; there are no paraphrases.
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
        drawn = false_targets(every[relation], own[relation, subject], seed, fact_id)
        if not drawn:
            left_out.append(
                record_left_out(where, "no other attribute in its relation to serve as false target", **fields)
            )
            continue
        others = sharing[relation, attribute]
        apart = (s for s in others if not related(s, subject) and drawn[0] not in own[relation, s])
        neighbors = shuffle(apart, seed, "neighbors", fact_id)
        prompts = tuple(others[s] for s in neighbors[:MAX_NEIGHBORS])
        facts.append(make_fact(where, **fields, target_false=drawn[0], neighborhood=prompts))
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
            left_out.append(record_left_out(where, "the subject is not in the question", **fields))
            continue
        template = _template(_ask(question), subject, where)
        fields |= {"relation": _template(question, subject, where), "prompt": template}
        if not alt or alt in answers:
            reason = "alt is one of the true answers" if alt else "no alternative answer"
            left_out.append(record_left_out(where, reason, **fields))
            continue
        paraphrases, neighborhood = (_ask(rephrased),), (_ask(loc.removeprefix("nq question: ")),)
        facts.append(make_fact(where, **fields, target_false=alt, paraphrases=paraphrases, neighborhood=neighborhood))
    return FactFile(_apart(facts), left_out)


def _ask(question: str) -> str:
    return f"Question: {question.rstrip(' ?')}? Answer:"


READERS: dict[str, Callable[[Path, int], FactFile]] = {
    EMBEDDED: read_embedded,
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


def _read_json(path: Path, id_key: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield (where, record) of a JSON list of objects."""
    try:
        records = json.loads(read_text(path))
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
