"""Which facts count as known, which of them are chosen, and the table that keeps all."""

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.facts.choose import KnownRule, choose, facts_to_frame, kept_facts, known_facts, trim
from pipeline.facts.fact import Fact, Known
from pipeline.facts.readers import read_fact_file, read_facts
from pipeline.tables import FACTS
from tests.facts.made import CARRIED, GREEDY, ROWS, fact, write_table


@pytest.fixture(scope="module")
def carried() -> list[Fact]:
    return read_facts("embedded", CARRIED, 0)


# Known facts and the choice among them


@pytest.mark.parametrize(
    ("rule", "measured", "reason"),
    [
        (GREEDY, Known(0.3, True, True), ""),
        (GREEDY, Known(0.3, False, True), "greedy answer is not the target"),
        (KnownRule(rule="within", within_tokens=36, min_p_true=0), Known(0.3, False, True), ""),
        (
            KnownRule(rule="within", within_tokens=36, min_p_true=0),
            Known(0.3, False, False),
            "target not within 36 greedy tokens",
        ),
        (KnownRule(rule="none", within_tokens=36, min_p_true=0), Known(1e-9, False, False), ""),
        (
            KnownRule(rule="none", within_tokens=36, min_p_true=0.02),
            Known(0.0012, True, True),
            "p(true) 0.0012 below 0.02",
        ),
        (KnownRule(rule="none", within_tokens=36, min_p_true=0.02), Known(0.02, True, True), ""),
        (
            KnownRule(rule="none", within_tokens=36, min_p_true=0),
            Known(float("nan"), True, True),
            "p(true) is nan",
        ),
    ],
)
def test_known_rules(rule: KnownRule, measured: Known, reason: str) -> None:
    sure = fact("sure"), Known(0.9, True, True)
    (_, first) = choose([sure[0], fact()], [sure[1], measured], rule, None)
    assert first == (not reason, reason)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 60), more=st.integers(0, 60), every=st.integers(1, 5))
def test_known_facts_go_on_as_a_higher_count_would(carried: list[Fact], count: int, more: int, every: int) -> None:
    facts = carried[::80]
    known = [Known(0.5, i % every == 0, True) for i in range(len(facts))]

    def table(n: int | None) -> pd.DataFrame:
        return facts_to_frame(facts, known, choose(facts, known, GREEDY, n))

    found = known_facts(table(count))
    assert {fact.fact_id for fact in found} == {fact.fact_id for fact in kept_facts(table(None))}
    for n in (count, count + more):
        assert {fact.fact_id for fact in found[:n]} == {fact.fact_id for fact in kept_facts(table(n))}
    assert found == known_facts(table(None))


def test_no_known_fact_is_an_error() -> None:
    with pytest.raises(UserError, match=r"none of 2 facts is known to the model by facts\.known\.rule 'greedy'"):
        choose([fact("a"), fact("b")], [Known(0.1, False, False)] * 2, GREEDY, 5)


def test_facts_beyond_the_count_say_so() -> None:
    facts = [fact(c, relation=c, source="counterfact") for c in "abc"]
    chosen = choose(facts, [Known(0.5, c != "a", True) for c in "abc"], GREEDY, 1)
    assert chosen == [
        (False, "greedy answer is not the target"),
        (True, ""),
        (False, "not among the first 1 known facts"),
    ]


def test_choice_takes_turns_over_relations_and_objects() -> None:
    # 6 facts of r1 (4 with one object, 2 with another), then 2 of r2
    targets = [("r1", "Oslo")] * 4 + [("r1", "Rome")] * 2 + [("r2", "Bern")] * 2
    facts = [fact(str(i), relation=r, target=t) for i, (r, t) in enumerate(targets)]
    known = [Known(0.5, True, True)] * len(facts)
    order = []
    for count in range(1, 9):
        kept = [f.fact_id for f, (k, _) in zip(facts, choose(facts, known, GREEDY, count), strict=True) if k]
        order += [i for i in kept if i not in order]
    assert order == ["0", "6", "4", "7", "1", "5", "2", "3"]


def test_choice_from_the_carried_table_is_spread(carried: list[Fact]) -> None:
    chosen = choose(carried, [Known(0.5, True, True)] * len(carried), GREEDY, 14)
    kept = [f for f, (k, _) in zip(carried, chosen, strict=True) if k]
    assert len(kept) == len({f.relation for f in kept}) == 14


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.tuples(st.sampled_from("rst"), st.sampled_from("XYZ"), st.booleans()), min_size=1, max_size=30),
    counts=st.tuples(st.integers(1, 30), st.integers(0, 10)),
    source=st.sampled_from(["embedded", "counterfact"]),
)
def test_a_higher_count_only_adds_facts(
    cells: list[tuple[str, str, bool]], counts: tuple[int, int], source: str
) -> None:
    facts = [fact(str(i), relation=r, target=t, source=source) for i, (r, t, _) in enumerate(cells)]
    known = [Known(0.5, greedy, greedy) for *_, greedy in cells]
    total = sum(greedy for *_, greedy in cells)
    if not total:
        with pytest.raises(UserError):
            choose(facts, known, GREEDY, counts[0])
        return
    few, many = (choose(facts, known, GREEDY, count) for count in (counts[0], sum(counts)))
    assert all(more for (less, _), (more, _) in zip(few, many, strict=True) if less)
    assert sum(kept for kept, _ in few) == min(total, counts[0])
    assert all(kept == (not reason) for kept, reason in few)
    assert all(k.greedy_correct for k, (kept, _) in zip(known, few, strict=True) if kept)
    per_relation = Counter(f.relation for f, (kept, _) in zip(facts, few, strict=True) if kept)
    room = Counter(f.relation for f, k in zip(facts, known, strict=True) if k.greedy_correct)
    if source == "embedded":  # no relation is ahead of one that still has facts to give
        assert all(per_relation[a] <= per_relation[b] + 1 for a in room for b in room if per_relation[b] < room[b])


# The table of facts


def test_table_keeps_every_fact_and_gives_back_the_kept_ones(tmp_path: Path) -> None:
    rows = [*ROWS, "lang\tBoth Town\tNorse", "lang\tBoth Town\tLatin"]
    read = read_fact_file("embedded", write_table(tmp_path, rows=rows), 0)
    known = [Known(0.01 * i, i % 2 == 0, True) for i in range(len(read.facts))]
    chosen = choose(read.facts, known, GREEDY, 4)
    frame = facts_to_frame(read.facts, known, chosen, read.left_out)
    assert tuple(frame.columns) == tuple(FACTS)
    assert len(frame) == 13
    assert frame["kept"].sum() == 4
    assert ((frame["drop_reason"] == "") == frame["kept"]).all()
    assert (frame["p_true"].dtype, frame["greedy_correct"].dtype, frame["kept"].dtype) == (
        "float64",
        "bool",
        "bool",
    )
    assert frame.iloc[12]["drop_reason"] == "the table gives it several objects: Norse, Latin"
    path = tmp_path / "facts.parquet"
    frame.to_parquet(path)
    kept = [f for f, (k, _) in zip(read.facts, chosen, strict=True) if k]
    assert kept_facts(pd.read_parquet(path)) == kept_facts(frame) == kept


def test_table_without_a_column_or_a_kept_fact() -> None:
    frame = facts_to_frame([fact()], [Known(0.5, True, True)], [(True, "")])
    with pytest.raises(UserError, match="lacks the column 'subject'"):
        kept_facts(frame.drop(columns="subject"))
    with pytest.raises(UserError, match="no row with kept = true"):
        kept_facts(frame.assign(kept=False))


def test_trim() -> None:
    one = fact(paraphrases=("a", "b", "c"), neighborhood=("d", "e"))
    (short,) = trim([one], 2, 0)
    assert (short.paraphrases, short.neighborhood) == (("a", "b"), ())
    assert trim([one], 9, 9) == [one]
