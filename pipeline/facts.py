"""Which facts a run uses: the known rule, the choice among known facts, and the table data/facts.parquet.

Known rules: the model's greedy text begins with the true object (greedy), or holds it within N tokens
(within; Hase et al. 2023 use 36 on CounterFact), each with a least p(true) where asked for. What the model
says is measured elsewhere. Every fact keeps its row in the table, used or not, with the reason why not.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import pandas as pd

from pipeline.errors import UserError, quoted
from pipeline.params import KnownParams

EMBEDDED = "embedded"
# Characters; more is a slip of the file and would fill the model's context.
MAX_ID, MAX_SUBJECT, MAX_TARGET, MAX_PROMPT = 200, 1000, 1000, 10_000
COLUMNS = (
    "fact_id",
    "relation",
    "subject",
    "prompt",
    "target_true",
    "target_false",
    "paraphrases",
    "neighborhood",
    "source",
    "p_true",
    "greedy_correct",
    "kept",
    "drop_reason",
)
_FACT_COLUMNS = COLUMNS[: COLUMNS.index("p_true")]
_LISTS = ("paraphrases", "neighborhood")

_ID = re.compile(r"[A-Za-z0-9_.-]+")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A subject, a prompt about it, and the true and a false way to go on.

    prompt holds `{}` once, where the subject stands, and ends right before the target; the targets have no
    leading space. paraphrases and neighborhood are whole prompts, filled in. source is the format that the
    fact was read from.
    Raises UserError, naming the fact, where a field could not serve.
    """

    fact_id: str
    relation: str
    subject: str
    prompt: str
    target_true: str
    target_false: str
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    source: str = EMBEDDED

    def __post_init__(self) -> None:
        name = f"fact {quoted(self.fact_id)}"
        check_id(self.fact_id)
        for field in ("relation", "subject", "prompt", "target_true", "target_false"):
            check_text(getattr(self, field), f"{name}: {field}", prompt=field in ("relation", "prompt"))
        for field in ("paraphrases", "neighborhood"):
            for i, text in enumerate(getattr(self, field)):
                check_text(text, f"{name}: {field}[{i}]", prompt=True)
        for field, most in (("subject", MAX_SUBJECT), ("target_true", MAX_TARGET), ("target_false", MAX_TARGET)):
            if len(getattr(self, field)) > most:
                raise UserError(
                    f"{name}: the {field} has {len(getattr(self, field))} characters; at most {most} will do"
                )
        for text in (self.relation, self.prompt, *self.paraphrases, *self.neighborhood):
            if len(text) > MAX_PROMPT:
                raise UserError(f"{name}: a prompt has {len(text)} characters; at most {MAX_PROMPT} will do")
        if self.prompt.count("{}") != 1:
            raise UserError(
                f"{name}: prompt {quoted(self.prompt)} holds {{}} {self.prompt.count('{}')} times; "
                "once, where the subject stands, is right"
            )
        if self.target_true == self.target_false:
            raise UserError(
                f"{name}: target_true and target_false are both {quoted(self.target_true)}; they must differ"
            )

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)

    @property
    def subject_at(self) -> int:
        """Index of the subject's first character in `text`."""
        return self.prompt.index("{}")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A record of a fact file that can't serve as an edit fact, and why."""

    fact_id: str
    relation: str
    subject: str
    prompt: str
    target_true: str
    source: str
    reason: str


@dataclass(frozen=True)
class FactFile:
    """What a fact file gives: facts, in the order in which to choose, and the records left out."""

    facts: list[Fact]
    left_out: list[LeftOut]


def check_id(fact_id: str) -> None:
    """Raise UserError unless the fact_id is short and plain: it names units, rows and figures."""
    if not _ID.fullmatch(fact_id) or len(fact_id) > MAX_ID:
        raise UserError(
            f"fact {quoted(fact_id)}: the fact_id must consist of letters A-Z, digits, '_', '.' and '-', "
            f"{MAX_ID} at most"
        )


def check_text(text: str, what: str, prompt: bool = False) -> None:
    """Raise UserError, beginning with `what`, unless the text is visible and clean.

    No space at an end, since target and prompt are joined by one; no control characters, but that prompts may
    have several lines (some of CounterFact's paraphrases do).
    """
    if not text.strip():
        raise UserError(f"{what} is empty; it needs visible text")
    if text != text.strip(" "):
        raise UserError(f"{what} is {quoted(text)}, with a space at its beginning or end; there must be none")
    check_characters(text, what, prompt)


def check_characters(text: str, what: str, prompt: bool = False) -> None:
    """The part of `check_text` that holds for records that are left out too, as they stand in a table."""
    allowed = "\n\t" if prompt else ""
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in allowed), None)
    if bad:
        raise UserError(f"{what} is {quoted(text)}, with the character U+{ord(bad):04X}; there must be none")


def read_fact_file(source: str, path: Path, seed: int) -> FactFile:
    """Read `path`, a file in the format `source` or, for the embedded format, a folder.

    Facts of the embedded table come in an order drawn by `seed`, those of other formats in the file's order.
    Raises UserError naming path, row and fact where the file is missing, can't be decoded or lacks something,
    and where it holds no fact that can be edited.
    """
    # The readers make Facts and so import this module.
    from pipeline.fact_readers import READERS

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


def of_relations(file: FactFile, relations: Sequence[str] | None) -> FactFile:
    """The part of a fact file that is about `relations`; None takes all. UserError for one that is not in it."""
    if relations is None:
        return file
    there = list(dict.fromkeys(fact.relation for fact in file.facts))
    if missing := [name for name in relations if name not in there]:
        raise UserError(
            f"facts.relations names {quoted(missing[0])}; the fact file has {', '.join(map(quoted, there[:20]))}"
        )
    return FactFile(
        [fact for fact in file.facts if fact.relation in relations],
        [record for record in file.left_out if record.relation in relations],
    )


def read_facts(source: str, path: Path, seed: int) -> list[Fact]:
    """The facts of `read_fact_file`."""
    return read_fact_file(source, path, seed).facts


@dataclass(frozen=True)
class Known:
    """What the model makes of a fact's prompt, measured on the model.

    p_true: probability of the true target. greedy_correct: the greedy text begins with it. within: the first
    N tokens of the greedy text hold it, N being params' facts.known.within_tokens.
    """

    p_true: float
    greedy_correct: bool
    within: bool


def trim(facts: Sequence[Fact], max_paraphrases: int, max_neighborhood: int) -> list[Fact]:
    """The facts with at most so many paraphrases and neighborhood prompts, the first ones of each."""
    return [
        replace(f, paraphrases=f.paraphrases[:max_paraphrases], neighborhood=f.neighborhood[:max_neighborhood])
        for f in facts
    ]


def choose(
    facts: Sequence[Fact], known: Sequence[Known], rule: KnownParams, count: int | None
) -> list[tuple[bool, str]]:
    """(kept, reason why not) of every fact, in the order given; `count` None keeps all known ones.

    Known facts of the embedded table are taken in turns over relations and, within one, over objects; those
    of other formats in their order, as the papers do. A higher count only adds facts to those of a lower one.
    Raises UserError if none is known.
    """
    reasons = [_unknown(measured, rule) for measured in known]
    order = [i for i, (_, reason) in enumerate(zip(facts, reasons, strict=True)) if not reason]
    if not order:
        raise UserError(
            f"none of {len(facts)} facts is known to the model by facts.known.rule {rule.rule!r} "
            f"(p(true) of at least {rule.min_p_true:g}); a looser rule or facts that it knows are needed"
        )
    if all(fact.source == EMBEDDED for fact in facts):
        order = _take_turns(order, lambda i: facts[i].relation, lambda i: facts[i].target_true)
    kept = set(order[:count])
    beyond = f"not among the first {count} known facts"
    return [(i in kept, reason or ("" if i in kept else beyond)) for i, reason in enumerate(reasons)]


def _unknown(measured: Known, rule: KnownParams) -> str:
    """Why a fact does not count as known; empty where it does."""
    if not math.isfinite(measured.p_true):
        return f"p(true) is {measured.p_true}"
    if rule.rule == "greedy" and not measured.greedy_correct:
        return "greedy answer is not the target"
    if rule.rule == "within" and not measured.within:
        return f"target not within {rule.within_tokens} greedy tokens"
    if measured.p_true < rule.min_p_true:
        return f"p(true) {measured.p_true:.4g} below {rule.min_p_true:g}"
    return ""


def _take_turns(items: Sequence[T], *keys: Callable[[T], Hashable]) -> list[T]:
    """One item of each group in turn: groups by the first key, as they first occur; within, by the next."""
    if not keys:
        return list(items)
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[keys[0](item)].append(item)
    missing = object()
    rounds = zip_longest(*(_take_turns(group, *keys[1:]) for group in groups.values()), fillvalue=missing)
    return [item for turn in rounds for item in turn if item is not missing]  # type: ignore[misc]


def facts_to_frame(
    facts: Sequence[Fact],
    known: Sequence[Known],
    chosen: Sequence[tuple[bool, str]],
    left_out: Sequence[LeftOut] = (),
) -> pd.DataFrame:
    """The table data/facts.parquet: a row a fact, then a record left out (p_true NaN, no false target)."""
    rows = [
        {column: getattr(fact, column) for column in _FACT_COLUMNS}
        | {name: list(getattr(fact, name)) for name in _LISTS}
        | {
            "p_true": measured.p_true,
            "greedy_correct": measured.greedy_correct,
            "kept": kept,
            "drop_reason": reason,
        }
        for fact, measured, (kept, reason) in zip(facts, known, chosen, strict=True)
    ]
    for record in left_out:
        row = {column: getattr(record, column, "") for column in _FACT_COLUMNS} | {name: [] for name in _LISTS}
        rows.append(row | {"p_true": math.nan, "greedy_correct": False, "kept": False, "drop_reason": record.reason})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"p_true": "float64", "greedy_correct": "bool", "kept": "bool"})


def kept_facts(frame: pd.DataFrame) -> list[Fact]:
    """The facts of data/facts.parquet that the run uses.

    Raises UserError where a column is missing or no fact is kept.
    """
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise UserError(f"the table of facts lacks the column {missing[0]!r}; the facts stage writes it")
    rows = frame.loc[frame["kept"].astype(bool), list(_FACT_COLUMNS)].to_dict("records")
    if not rows:
        raise UserError("the table of facts has no row with kept = true; at least one fact is needed")
    return [Fact(**{**row, **{name: tuple(row[name]) for name in _LISTS}}) for row in rows]
