"""CounterFact's measures of error injection: whether the new object beats the old one, where it should and where not.

Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3.4 and its published code. After an edit
towards o*, for a fact's own prompt (efficacy, E), its paraphrases (P) and its neighborhood prompts (N):

    ES, PS   share of prompts with p(o*) > p(o)        EM, PM   mean of p(o*) - p(o)
    NS       share of prompts with p(o) > p(o*)        NM       mean of p(o) - p(o*)

each for a fact over its prompts, then over facts. S is the harmonic mean of ES, PS and NS over all facts, not of a
fact's own. p of an object is the product of its tokens' probabilities; the published code takes their geometric mean,
which is the same for objects of one token and kinder to long ones.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.analysis.profiles import Resampling, interval, mean_interval, resampled_means, with_ends
from pipeline.analysis.scores import one_row_a_prompt
from pipeline.tables import ERROR_INJECTION

KINDS = {"rewrite": ("ES", "EM"), "paraphrase": ("PS", "PM"), "neighborhood": ("NS", "NM")}
MEASURES = tuple(name for names in KINDS.values() for name in names)
IN_S = ("ES", "PS", "NS")
GENERATED = ("GE", "RS")  # of generated text (pipeline.measure.generation), not of probabilities
COUNTERFACT_COLUMNS = (
    "method", "layer", "n_facts",
    *(f"{name}{end}" for name in ("S", *MEASURES, *GENERATED) for end in ("", "_low", "_high")),
)  # fmt: skip
_EDIT = ["method", "layer", "fact_id"]


def fact_measures(edits: pd.DataFrame) -> pd.DataFrame:
    """One row per method, layer and fact, with the columns MEASURES, in the order of `edits` and by layer.

    edits: data/edits of all methods and problems, one below the other; edits of other problems than error injection
    and edits that failed are left out. A measure is NaN for a fact without prompts of its kind. Raises UserError where
    an edit has two rows for one prompt.
    """
    rows = edits[(edits["problem"] == ERROR_INJECTION) & (edits["status"] == "ok")]
    one_row_a_prompt(rows, _EDIT, ", so edit with one window at a time")
    margin = (rows["p_post"] - rows["p_baseline_post"]) * np.where(rows["prompt_kind"] == "neighborhood", -1, 1)
    prompts = rows[[*_EDIT, "prompt_kind"]].assign(
        share=(margin > 0).where(margin.notna()).astype(float), margin=margin
    )
    means = prompts.groupby([*_EDIT, "prompt_kind"], sort=False)[["share", "margin"]].mean().unstack("prompt_kind")
    columns = [(part, kind) for kind in KINDS for part in ("share", "margin")]
    table = means.reindex(columns=pd.MultiIndex.from_tuples(columns)).set_axis(list(MEASURES), axis=1).reset_index()
    order = {method: place for place, method in enumerate(rows["method"].unique())}
    by = table["method"].map(order)
    return table.iloc[np.lexsort((table["layer"], by))].reset_index(drop=True)


def counterfact_table(edits: pd.DataFrame, plan: Resampling, generated: pd.DataFrame | None = None) -> pd.DataFrame:
    """The table's measures: one row per method and layer, in the order of `edits` and by layer.

    generated: a fact's GE and RS by method, layer and fact_id, each NaN where it has none; None where no text was
    generated.

    Returns
    -------
    DataFrame with the columns COUNTERFACT_COLUMNS: means over facts, with bootstrap intervals by facts (_low, _high);
    that of S resamples facts with all their measures and takes the harmonic mean anew. n_facts counts the facts whose
    edit did not fail; a fact without paraphrases, say, is missing from PS and PM alone. S is 0 where one of its
    parts is, NaN where one is. GE and RS are NaN without `generated`. No row where no error was injected.
    """
    rows = []
    measures = fact_measures(edits)
    if generated is not None:
        measures = measures.merge(generated[[*_EDIT, *GENERATED]], on=_EDIT, how="left")
    names = [*MEASURES, *(GENERATED if generated is not None else ())]
    for (method, layer), group in measures.groupby(["method", "layer"], sort=False):
        values = group[names].to_numpy(dtype=np.float64)
        mean, low, high, n = mean_interval(values, plan)
        row: dict[str, object] = {"method": method, "layer": layer, "n_facts": len(group)}
        for name, *three in zip(names, mean, low, high, strict=True):
            row |= with_ends(name, *three)
        parts = [MEASURES.index(name) for name in IN_S]
        count = int(n[parts].min())
        of_s = (np.nan, np.nan)
        if count >= 2:
            of_s = interval(harmonic_mean(resampled_means(values, plan)[:, parts]), count, plan.confidence)
        row |= with_ends("S", float(harmonic_mean(mean[parts])), *of_s)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COUNTERFACT_COLUMNS)).astype(dict.fromkeys(COUNTERFACT_COLUMNS[3:], float))


def harmonic_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Harmonic mean of non-negative values over the last axis; 0 where one is 0, NaN where one is NaN."""
    with np.errstate(divide="ignore"):
        return np.asarray(values.shape[-1] / (1 / values).sum(-1))
