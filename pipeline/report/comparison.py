"""The report's section on methods side by side."""

from typing import Any

import pandas as pd

from pipeline.analysis.comparison import COMPARED
from pipeline.analysis.trust import MIN_FACTS_OF_MEANS


def section(table: pd.DataFrame) -> dict[str, Any]:
    """What the page says of `pipeline.analysis.comparison.comparison_table`: its rows, none where there is one method
    only, and whether their intervals are of enough facts to be printed (`intervals`); those of too few are None.
    """
    if table["method"].nunique() < 2:
        return {"rows": [], "intervals": False}
    few = table["n_facts"] < MIN_FACTS_OF_MEANS
    shown = table.copy()
    for score in COMPARED:
        withheld = table["n_reverse"] < MIN_FACTS_OF_MEANS if score == "reverse" else few
        for end in (f"{score}_low", f"{score}_high"):
            shown[end] = table[end].astype(object).mask(withheld, None)
    return {"rows": shown.to_dict("records"), "intervals": not few.all(), "least": MIN_FACTS_OF_MEANS}
