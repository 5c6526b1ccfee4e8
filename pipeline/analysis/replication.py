"""Does what one run found hold in another, of another model or other facts?

Two estimates of one quantity are set side by side with their intervals. That two intervals overlap says that one value
may be true of both runs, which is weaker than a test of the difference (Schenker and Gentleman 2001); that both lie on
one side of 0 says that each run shows the sign by itself. No row is a test, and nothing is corrected for their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

# From the most that two runs can say together to the least, and then what speaks against it.
HOLDS, AGREES, SIGN, OPEN, APART, CONTRADICTS = VERDICTS = (
    "holds", "agrees", "sign", "open", "apart", "contradicts",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number of one run with the ends of its interval; None where too few facts give none that holds."""

    value: float
    ends: tuple[float, float] | None
    n_facts: int

    @property
    def shown(self) -> bool:
        """Whether its interval leaves out 0."""
        return self.ends is not None and (self.ends[0] > 0 or self.ends[1] < 0)


def verdict(one: Estimate, other: Estimate) -> str:
    """One of VERDICTS.

    holds: of one sign, intervals that overlap and both leave out 0. agrees: the same, but an interval holds 0. sign: of
    one sign, and at least one without an interval. open: of two signs, and intervals that overlap or are missing.
    apart: of one sign, and intervals that do not overlap. contradicts: of two signs, and intervals that do not. 0 is
    taken as above 0.
    """
    same = (one.value >= 0) == (other.value >= 0)
    if one.ends is None or other.ends is None:
        return SIGN if same else OPEN
    if max(one.ends[0], other.ends[0]) > min(one.ends[1], other.ends[1]):
        return APART if same else CONTRADICTS
    if not same:
        return OPEN
    return HOLDS if one.shown and other.shown else AGREES


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The estimates of two runs, and of what: the values of the keys that they share."""

    of: tuple[str, ...]
    one: Estimate
    other: Estimate

    @property
    def verdict(self) -> str:
        """As `verdict` says."""
        return verdict(self.one, self.other)


def pairs(
    one: pd.DataFrame, other: pd.DataFrame, keys: Sequence[str], value: str, ends: tuple[str, str], least: int
) -> list[Pair]:
    """The estimates that both tables have, in the order of the first.

    Parameters
    ----------
    one, other : tables with the columns of `keys`, n_facts, `value` and `ends` (its interval's); keys are unique.
    least : facts below which an interval is withheld, as its coverage was not seen to hold.

    Rows without a value are left out. Raises ValueError where a table has two rows of one key.
    """
    found = [_estimates(table, keys, value, ends, least) for table in (one, other)]
    return [Pair(of=key, one=found[0][key], other=found[1][key]) for key in found[0] if key in found[1]]


def _estimates(
    table: pd.DataFrame, keys: Sequence[str], value: str, ends: tuple[str, str], least: int
) -> dict[tuple[str, ...], Estimate]:
    result: dict[tuple[str, ...], Estimate] = {}
    for row in table.dropna(subset=[value]).to_dict("records"):
        key = tuple(str(row[name]) for name in keys)
        if key in result:
            raise ValueError(f"two rows of {dict(zip(keys, key, strict=True))}")
        given = row["n_facts"] >= least and not (pd.isna(row[ends[0]]) or pd.isna(row[ends[1]]))
        interval = (float(row[ends[0]]), float(row[ends[1]])) if given else None
        result[key] = Estimate(value=float(row[value]), ends=interval, n_facts=int(row["n_facts"]))
    return result
