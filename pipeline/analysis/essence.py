"""What edits leave of what the model had to say of a subject: Hase et al.'s essence score by layer, and what of it the
layer and the trace explain.

The score itself is `pipeline.analysis.scores.essence`, of the perplexities that `pipeline.measure.essence` gives. An
edit that does nothing scores 1, and so does one at a layer from which nothing leads to the texts.
"""

import pandas as pd

from pipeline.analysis.profiles import Resampling, mean_interval
from pipeline.analysis.scores import essence
from pipeline.errors import UserError

ESSENCE_COLUMNS = (
    "method", "problem", "layer", "essence", "low", "high", "n_facts", "perplexity_pre", "perplexity_post",
)  # fmt: skip
R2_COLUMNS = (
    "method", "problem", "score", "trace_module", "trace_window", "trace_measure", "n_facts", "n_rows", "n_layers",
    "n_relations", "r2_layer", "r2_trace", "r2_both", "r2_diff", "chance", "gain", "gain_low", "gain_high",
    "permutation_pvalue", "within_slope", "within_low", "within_high", "within_pvalue",
)  # fmt: skip
_EDIT = ["fact_id", "method", "problem", "layer"]


def with_score(perplexities: pd.DataFrame) -> pd.DataFrame:
    """data/essence.parquet: a row an edit, with the score beside the perplexities; NaN where there is no edit."""
    table = perplexities.assign(essence=essence(perplexities["perplexity_pre"], perplexities["perplexity_post"]))
    return table[[*_EDIT, "perplexity_pre", "perplexity_post", "essence", "status"]]


def essence_by_layer(table: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """Mean score by method, problem and layer over the facts edited there, with an interval by facts.

    table: of `with_score`. Returns the columns ESSENCE_COLUMNS; perplexities are medians over the same facts, as one
    ruined model would be the whole of a mean. Layers without an edit have NaN and 0 facts.
    """
    tables = []
    for (method, problem), group in table.groupby(["method", "problem"], sort=False):
        wide = group.pivot(index="fact_id", columns="layer", values="essence").sort_index().sort_index(axis=1)
        mean, low, high, n = mean_interval(wide.to_numpy(float), plan)
        edited = group[group["essence"].notna()].groupby("layer")[["perplexity_pre", "perplexity_post"]]
        medians = edited.median().reindex(wide.columns).reset_index()
        tables.append(medians.assign(method=method, problem=problem, essence=mean, low=low, high=high, n_facts=n))
    return pd.concat(tables, ignore_index=True)[list(ESSENCE_COLUMNS)]


def beside_traces(scores: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """`scores` (scores.parquet) with the column essence, the rows of edits that were measured only.

    Raises UserError where an edit has two rows in `table`, or none of its edits is in `scores`.
    """
    if table.duplicated(_EDIT).any():
        row = table[table.duplicated(_EDIT)].iloc[0]
        raise UserError(
            f"data/essence.parquet: fact {row['fact_id']} ({row['method']}, {row['problem']}) has two rows for layer "
            f"{row['layer']}; delete it and run `make essence`"
        )
    rows = scores.merge(table[[*_EDIT, "essence"]], on=_EDIT, how="inner")
    if rows.empty:
        raise UserError("data/scores.parquet has none of the edits of data/essence.parquet; run `make essence` again")
    return rows
