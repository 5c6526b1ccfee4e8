"""Both directions: after an edit, does the object lead back to the subject? The open question of Meng et al. 2022.

Taken at the layers where methods are compared (pipeline.analysis.comparison), each chosen on other facts, and over the
facts of relations with a natural inverse. A subject is one of many with its object, so its probability is small.
"""

import pandas as pd

from pipeline.analysis.collapse import once
from pipeline.analysis.comparison import chosen_layers

REVERSE_COLUMNS = (
    "method", "problem", "n_facts", "p_pre", "p_post", "p_baseline_pre", "p_baseline_post",
    "reverse", "reverse_low", "reverse_high", "rewrite",
)  # fmt: skip
_P = list(REVERSE_COLUMNS[3:7])


def reverse_table(scores: pd.DataFrame, edits: pd.DataFrame, compared: pd.DataFrame) -> pd.DataFrame:
    """One row per problem and method of `compared` (of `comparison_table`) with a fact that has a reverse score.

    Returns
    -------
    DataFrame with the columns REVERSE_COLUMNS: means over these facts. p_pre, p_post: probability of the subject after
    the reverse prompt about the edit's target; p_baseline_pre, p_baseline_post: about the object that it is compared
    with, the true one in error injection. rewrite: the rewrite score of the same edits, which differs from that in
    `compared` where facts have no reverse prompt.
    """
    back = edits[edits["prompt_kind"] == "reverse"].set_index(["problem", "method", "fact_id", "layer"])[_P]
    groups = dict(list(once(scores).groupby(["problem", "method"], sort=False)))
    rows = []
    for row in compared[compared["n_reverse"] > 0].to_dict("records"):
        names = row["problem"], row["method"]
        wide = groups[names].pivot(index="fact_id", columns="layer", values="overall").dropna(how="all")
        places = list(zip(wide.index, chosen_layers(wide), strict=True))
        at = groups[names].set_index(["fact_id", "layer"]).loc[places]
        at = at[at["reverse"].notna()]
        p = back.loc[[(*names, *place) for place in at.index]].mean()
        of_row = {name: row[name] for name in ("method", "problem", "reverse", "reverse_low", "reverse_high")}
        rows.append({**of_row, **p.to_dict(), "n_facts": len(at), "rewrite": float(at["rewrite"].mean())})
    return pd.DataFrame(rows, columns=list(REVERSE_COLUMNS))
