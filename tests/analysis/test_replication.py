"""What two runs say together: verdicts worked out by hand, and which rows are set side by side."""

import pandas as pd
import pytest

from pipeline.analysis.replication import (
    AGREES,
    APART,
    CONTRADICTS,
    HOLDS,
    OPEN,
    SIGN,
    Estimate,
    Pair,
    pairs,
    verdict,
)


def estimate(value: float, *ends: float) -> Estimate:
    return Estimate(value=value, ends=(ends[0], ends[1]) if ends else None, n_facts=50)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (estimate(0.2, 0.1, 0.3), estimate(0.3, 0.2, 0.4), HOLDS),
        (estimate(-0.2, -0.3, -0.1), estimate(-0.1, -0.15, -0.05), HOLDS),
        (estimate(0.2, 0.1, 0.3), estimate(0.3, -0.1, 0.7), AGREES),
        (estimate(0.1, -0.1, 0.3), estimate(0.2, 0.0, 0.4), AGREES),  # an end of 0 leaves 0 in
        (estimate(0.2, 0.1, 0.3), estimate(0.5, 0.4, 0.6), APART),
        (estimate(0.2), estimate(0.5, 0.4, 0.6), SIGN),
        (estimate(0.2), estimate(0.5), SIGN),
        (estimate(0.0), estimate(0.5), SIGN),
        (estimate(-0.2), estimate(0.5), OPEN),
        (estimate(-0.1, -0.3, 0.2), estimate(0.1, 0.0, 0.2), OPEN),
        (estimate(-0.2, -0.3, -0.1), estimate(0.2, 0.1, 0.3), CONTRADICTS),
        (estimate(-0.2, -0.3, -0.1), estimate(0.2, -0.05, 0.3), CONTRADICTS),
    ],
)
def test_verdicts(one: Estimate, other: Estimate, expected: str) -> None:
    assert verdict(one, other) == expected
    assert verdict(other, one) == expected


def table(*rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["problem", "v", "low", "high", "n_facts"])


def test_rows_of_both_are_paired_in_the_order_of_the_first() -> None:
    one = table(("b", 0.1, 0.0, 0.2, 40), ("a", 0.2, 0.1, 0.3, 39), ("c", 0.3, 0.2, 0.4, 40))
    other = table(("a", 0.5, 0.4, 0.6, 99), ("b", 0.6, None, 0.7, 99), ("d", 0.7, 0.6, 0.8, 99))
    found = pairs(one, other, ["problem"], "v", ("low", "high"), 40)
    assert [pair.of for pair in found] == [("b",), ("a",)]
    assert found[0] == Pair(
        of=("b",),
        one=Estimate(value=0.1, ends=(0.0, 0.2), n_facts=40),
        other=Estimate(value=0.6, ends=None, n_facts=99),  # it has no lower end
    )
    assert found[1].one.ends is None  # of too few facts
    assert found[1].other.ends == (0.4, 0.6)
    assert found[1].verdict == SIGN


def test_rows_without_a_value_are_left_out_and_none_is_taken_for_another() -> None:
    one, other = table(("a", None, 0.0, 0.2, 40)), table(("a", 0.5, 0.4, 0.6, 99))
    assert pairs(one, other, ["problem"], "v", ("low", "high"), 40) == []
    with pytest.raises(ValueError, match="two rows"):
        pairs(other, pd.concat([other, other]), ["problem"], "v", ("low", "high"), 40)
