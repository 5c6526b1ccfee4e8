"""Which statistics the report prints: those whose size and coverage were seen to hold, by `make simulate`.

docs/statistics.md has the simulations. A number that is withheld from the page still stands in reports/regressions.csv.
"""

from collections.abc import Mapping
from typing import Any

MIN_FACTS_SHOWN = 10  # fewer were not simulated
MIN_FACTS_OF_GAIN = 40  # with a dozen, intervals of the gains hold the truth in 90 to 97 % of runs, not in 93 to 97 %

_GAINS = ("gain_low", "gain_high", "gain_bound", "cv_gain_low", "cv_gain_high")
_OTHERS = (
    "permutation_pvalue", "permutation_holm", "permutation_fdr", "permutation_pvalue_all", "within_low", "within_high",
    "within_pvalue", "within_holm", "within_fdr",
)  # fmt: skip


def withheld(row: Mapping[str, Any]) -> dict[str, str]:
    """Names of the statistics of a regression that are not to be printed, each with the reason.

    `row` has n_facts and n_relations; which statistics hold depends on nothing else that a run knows.
    """
    reasons = {"f_pvalue": "it takes the rows of one fact for independent"}
    if row["n_relations"] > 1:
        reasons["permutation_pvalue_all"] = "facts of one relation are alike, so it rejects too often"
    if row["n_facts"] < MIN_FACTS_SHOWN:
        reasons |= dict.fromkeys(
            _OTHERS, f"below {MIN_FACTS_SHOWN} facts nothing shows that it holds its size or coverage"
        )
    if row["n_facts"] < MIN_FACTS_OF_GAIN:
        reasons |= dict.fromkeys(_GAINS, f"below {MIN_FACTS_OF_GAIN} facts it misses the truth too often")
    return reasons


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` with None in place of what is withheld."""
    return {**row, **dict.fromkeys(withheld(row), None)}
