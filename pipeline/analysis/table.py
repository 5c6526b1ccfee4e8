"""CounterFact's table: each method's best layer on facts set aside for that, and the measures on the facts reported.

The columns are those of Meng et al. 2022 (pipeline.analysis.counterfact); the rows are the unedited model, and each
method at the layer that is best on other facts and at the depth where the papers edit.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from pipeline.analysis.counterfact import (
    COUNTERFACT_COLUMNS,
    IN_S,
    MEASURES,
    counterfact_table,
    fact_measures,
    harmonic_mean,
)
from pipeline.analysis.profiles import Resampling
from pipeline.errors import UserError

MARGINS = ("EM", "PM", "NM")
TABLE_COLUMNS = (*COUNTERFACT_COLUMNS[:2], "chosen", *COUNTERFACT_COLUMNS[2:])


def best_layers(edits: pd.DataFrame) -> dict[str, int]:
    """The layer of each method whose S is highest, in the order of `edits`.

    edits: data/edits of error injection at all layers tried. S is the harmonic mean of ES, PS and NS, each over the
    facts; a part of which no fact has prompts is left out. Where layers tie, that with the higher mean of EM, PM and
    NM is taken, then the lower one. Raises UserError for a method of which every edit failed.
    """
    measures = fact_measures(edits)
    best = {}
    for method, tried in edits.groupby("method", sort=False):
        means = measures[measures["method"] == method].groupby("layer")[list(MEASURES)].mean()
        if means.empty:
            raise UserError(
                f"table.methods names {method}, of which every edit failed on the facts that layers are chosen on, the "
                f"first with: {tried['status'].iloc[0]}; leave it out or mend its section"
            )
        parts = [name for name in IN_S if means[name].notna().any()]
        score = harmonic_mean(means[parts].to_numpy(dtype=np.float64))
        margin = means[list(MARGINS)].mean(axis=1).to_numpy()
        order = np.lexsort((means.index, -np.nan_to_num(margin, nan=-1), -np.nan_to_num(score, nan=-1)))
        best[str(method)] = int(means.index[order[0]])
    return best


def methods_table(
    edits: pd.DataFrame, texts: pd.DataFrame, rows: Iterable[tuple[str, int, str]], plan: Resampling
) -> pd.DataFrame:
    """reports/counterfact.csv: a row for each of `rows`, each a method, a layer (-1 for none) and why it is there.

    edits: data/table.parquet; texts: data/table_texts.parquet, of whose columns GE is the mean of `entropy` over a
    fact's texts and RS is `reference`. Returns the columns TABLE_COLUMNS, `layer` NaN where there is none.
    """
    of = ["method", "layer", "fact_id"]
    generated = texts.groupby(of)[["entropy", "reference"]].mean().set_axis(["GE", "RS"], axis=1).reset_index()
    measured = counterfact_table(edits, plan, generated).set_index(["method", "layer"])
    table = pd.DataFrame(rows, columns=["method", "layer", "chosen"]).join(measured, on=["method", "layer"])
    table["n_facts"] = table["n_facts"].fillna(0).astype("int64")  # 0 where every edit failed
    table["layer"] = table["layer"].where(table["layer"] >= 0).astype("Int64")
    return table[list(TABLE_COLUMNS)]
