"""Which statistics the report prints: those whose size and coverage were seen to hold, by `make simulate`.

docs/statistics.md has the simulations. A number that is withheld from the page still stands in reports/regressions.csv.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

MIN_FACTS_SHOWN = 10  # fewer were not simulated
MIN_FACTS_OF_GAIN = 100  # with 40, interval and bound hold a gain of 0.01 in 91 to 96 % of runs, not in 93 to 97 %
MIN_FACTS_OF_CV = 40  # with a dozen, the interval holds the held-out gain in 92 to 98 % of runs
MIN_FACTS_OF_MEANS = 40  # with a dozen, the bands about means of scores near 0 or 1 hold them in 90 % of runs
MIN_FACTS_OF_SLOPES = 40  # of fractional.csv: with ten facts, their intervals hold the slope in 90 to 93 % of runs

_GAIN = ("gain_low", "gain_high", "gain_bound")
_CV = ("cv_gain_low", "cv_gain_high")
_OTHERS = (
    "permutation_pvalue", "permutation_holm", "permutation_fdr", "permutation_pvalue_all", "within_low", "within_high",
    "within_pvalue", "within_holm", "within_fdr",
)  # fmt: skip


def bands(table: pd.DataFrame) -> pd.DataFrame:
    """A table of means by layer (columns low, high, n) without the intervals of means over too few facts."""
    few = table["n"] < MIN_FACTS_OF_MEANS
    return table.assign(low=table["low"].mask(few), high=table["high"].mask(few))


def bands_phrase(table: pd.DataFrame, confidence: float) -> str:
    """What a caption says of the bands of such a table."""
    if (table["n"] < MIN_FACTS_OF_MEANS).all():
        return f"no bands, as below {MIN_FACTS_OF_MEANS} facts they miss the mean too often"
    return f"bands {confidence:.0%} intervals from resampled facts"


def withheld(row: Mapping[str, Any]) -> dict[str, str]:
    """Names of the statistics of a regression that are not to be printed, each with the reason.

    `row` has n_facts and n_relations; which statistics hold depends on nothing else that a run knows.
    """
    reasons = {"f_pvalue": "the test takes the rows of one fact for independent"}
    if row["n_relations"] > 1:
        reasons["permutation_pvalue_all"] = "facts of one relation are alike, so it rejects too often"
    if row["n_facts"] < MIN_FACTS_SHOWN:
        reasons |= dict.fromkeys(
            _OTHERS, f"below {MIN_FACTS_SHOWN} facts nothing shows that it holds its size or coverage"
        )
    for names, least in ((_GAIN, MIN_FACTS_OF_GAIN), (_CV, MIN_FACTS_OF_CV)):
        if row["n_facts"] < least:
            reasons |= dict.fromkeys(names, f"below {least} facts they do not hold the truth as often as they say")
    return reasons


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with None in place of what is withheld."""
    return {**row, **dict.fromkeys(withheld(row), None)}
