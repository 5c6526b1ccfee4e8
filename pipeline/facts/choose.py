"""Which facts a run uses: the known rule, the choice among known facts, and the table data/facts.parquet.

Known rules: the model's greedy text begins with the true object (greedy), or holds it within N tokens
(within; Hase et al. 2023 use 36 on CounterFact), each with a least p(true) where asked for. What the model
says is measured elsewhere. Every fact keeps its row in the table, used or not, with the reason why not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeVar

import pandas as pd

from pipeline.errors import UserError, quoted
from pipeline.facts.fact import EMBEDDED, Fact, FactFile, Known, LeftOut
from pipeline.tables import FACTS

T = TypeVar("T")

BEYOND = "not among the first"  # how the reason begins for which a known fact is not kept

_FACT_COLUMNS = tuple(FACTS)[: tuple(FACTS).index("p_true")]
_LISTS = ("paraphrases", "neighborhood")


@dataclass(frozen=True)
class KnownRule:
    """Which facts count as known; `facts.known` of params.yaml. within_tokens: length of the greedy text, in tokens."""

    rule: str
    within_tokens: int
    min_p_true: float


def of_relations(file: FactFile, relations: Sequence[str] | None) -> FactFile:
    """The part of a fact file that is about `relations`; None takes all. UserError for one that is not in it.

    Records left out whose relation can't be told stay.
    """
    if relations is None:
        return file
    there = list(dict.fromkeys(fact.relation for fact in file.facts))
    if missing := [name for name in relations if name not in there]:
        raise UserError(
            f"facts.relations names {quoted(missing[0])}; the fact file has {', '.join(map(quoted, there[:20]))}"
        )
    return FactFile(
        [fact for fact in file.facts if fact.relation in relations],
        [record for record in file.left_out if not record.relation or record.relation in relations],
    )


def trim(facts: Sequence[Fact], max_paraphrases: int, max_neighborhood: int) -> list[Fact]:
    """The facts with at most so many paraphrases and neighborhood prompts, the first ones of each."""
    return [
        replace(f, paraphrases=f.paraphrases[:max_paraphrases], neighborhood=f.neighborhood[:max_neighborhood])
        for f in facts
    ]


def choose(facts: Sequence[Fact], known: Sequence[Known], rule: KnownRule, count: int | None) -> list[tuple[bool, str]]:
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
    beyond = f"{BEYOND} {count} known facts"
    return [(i in kept, reason or ("" if i in kept else beyond)) for i, reason in enumerate(reasons)]


def known_facts(frame: pd.DataFrame) -> list[Fact]:
    """All facts of data/facts.parquet that the model knows, in the order in which `choose` takes them.

    So the run's own come first. Raises UserError as `kept_facts` does.
    """
    kept = kept_facts(frame)
    further = kept_facts(frame.assign(kept=frame["kept"] | frame["drop_reason"].str.startswith(BEYOND)))
    if all(fact.source == EMBEDDED for fact in further):
        further = _take_turns(further, lambda fact: fact.relation, lambda fact: fact.target_true)
    own = {fact.fact_id for fact in kept}
    return [fact for fact in further if fact.fact_id in own] + [fact for fact in further if fact.fact_id not in own]


def _unknown(measured: Known, rule: KnownRule) -> str:
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
    """The table data/facts.parquet: a row a fact, then a sound record left out (p_true NaN, no false target).

    What is wrong in itself has no row: it has no id and no fields, and stands in data/left_out.csv alone.
    """
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
    for record in (record for record in left_out if not record.broken):
        row = {column: getattr(record, column, "") for column in _FACT_COLUMNS} | {name: [] for name in _LISTS}
        rows.append(row | {"p_true": math.nan, "greedy_correct": False, "kept": False, "drop_reason": record.reason})
    frame = pd.DataFrame(rows, columns=list(FACTS))
    return frame.astype({"p_true": "float64", "greedy_correct": "bool", "kept": "bool"})


def kept_facts(frame: pd.DataFrame) -> list[Fact]:
    """The facts of data/facts.parquet that the run uses.

    Raises UserError where a column is missing or no fact is kept.
    """
    missing = [column for column in FACTS if column not in frame]
    if missing:
        raise UserError(f"the table of facts lacks the column {missing[0]!r}; the facts stage writes it")
    rows = frame.loc[frame["kept"].astype(bool), list(_FACT_COLUMNS)].to_dict("records")
    if not rows:
        raise UserError("the table of facts has no row with kept = true; at least one fact is needed")
    return [Fact(**{**row, **{name: tuple(row[name]) for name in _LISTS}}) for row in rows]
