"""Many edits at once, mixtures of relations, and windows of MEMIT, by CounterFact's measures with intervals by facts.

ES, PS, NS and S are those of `pipeline.analysis.counterfact`; GE is the mean generation entropy of the texts that the
edited model writes, in bits (`pipeline.measure.generation`). Meng et al. 2023, "Mass-Editing Memory in a Transformer",
plot them against the number of edits (their Figure 4), and S of mixtures of two relations beside the mean of what each
gives alone (their section 5.4).

An interval resamples the facts that were scored. Facts that were edited together share one edited model, so it says how
far the mean would move with other facts to score, not with another set of facts to edit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.analysis.counterfact import IN_S, fact_measures, harmonic_mean
from pipeline.analysis.profiles import Resampling, interval, mean_interval, resampled_means, with_ends
from pipeline.tables import UNEDITED

_Floats = NDArray[np.float64]
SHOWN = ("S", *IN_S, "GE")


def _columns(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


SCALING_COLUMNS = ("method", "n_edits", "layer", "n_batches", "n_facts", "n_texts", *_columns(SHOWN))
RELATION_COLUMNS = ("relation", "method", "n_edits", "n_facts", *_columns(("S", *IN_S)))
MIXTURE_COLUMNS = (
    "relation_a", "relation_b", "method", "n_edits", "n_facts",
    *_columns(("S", *IN_S)), *_columns(("S_apart", *(f"{name}_apart" for name in IN_S))),
    *_columns(("S_difference", *(f"{name}_difference" for name in IN_S))),
)  # fmt: skip
PLACE_COLUMNS = ("window", "layer", "n_facts", "acts", *_columns(("S", *IN_S)))


def by_fact(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a fact: ES, PS, NS and GE (NaN where no text was written), with its relation; in the order of `rows`.

    rows: the prompts of one method's batches of one size. Edits that failed are left out.
    """
    measures = fact_measures(rows).set_index("fact_id")[list(IN_S)]
    once = rows[rows["prompt_kind"] == "rewrite"].set_index("fact_id")
    return measures.assign(GE=once["entropy"], relation=once["relation"]).reindex(
        [fact for fact in once.index if fact in measures.index]
    )


def summary(values: _Floats, plan: Resampling) -> dict[str, float]:
    """S, ES, PS and NS with the ends of their intervals, of facts by (ES, PS, NS), shape (F, 3); NaN is missing."""
    if not len(values):
        return dict.fromkeys(_columns(("S", *IN_S)), float("nan"))
    mean, low, high, n = mean_interval(values, plan)
    ends, count = (float("nan"), float("nan")), int(n.min())
    if count >= 2:
        ends = interval(harmonic_mean(resampled_means(values, plan)), count, plan.confidence)
    found = with_ends("S", float(harmonic_mean(mean)), *ends)
    for name, *three in zip(IN_S, mean, low, high, strict=True):
        found |= with_ends(name, *three)
    return found


def scaling_table(rows: pd.DataFrame, methods: Sequence[str], counts: Sequence[int], plan: Resampling) -> pd.DataFrame:
    """reports/scaling.csv: the unedited model (n_edits 0), then each method by number of edits.

    Returns
    -------
    DataFrame with the columns SCALING_COLUMNS. A number of edits for which there were too few facts has n_facts 0 and
    no scores. GE is the mean over n_texts texts, in bits.
    """
    wanted = [(UNEDITED, 0), *((method, n) for method in methods for n in sorted(counts))]
    scaling = rows[rows["study"] == "scaling"]
    found = []
    for method, n in wanted:
        own = scaling[(scaling["method"] == method) & (scaling["n_edits"] == n)]
        facts = by_fact(own)
        row: dict[str, object] = {"method": method, "n_edits": n, "n_batches": own["batch"].nunique() if n else 0}
        row |= {"layer": int(own["layer"].iloc[0]) if len(own) else -1, "n_facts": len(facts)}
        texts = facts["GE"].dropna().to_numpy(dtype=np.float64)
        row["n_texts"] = len(texts)
        row |= summary(facts[list(IN_S)].to_numpy(dtype=np.float64), plan)
        row |= dict.fromkeys(_columns(("GE",)), np.nan)
        if len(texts):
            (mean,), (low,), (high,), _ = mean_interval(texts[:, None], plan)
            row |= with_ends("GE", mean, low, high)
        found.append(row)
    return pd.DataFrame(found, columns=list(SCALING_COLUMNS))


def relations_table(rows: pd.DataFrame, methods: Sequence[str], plan: Resampling) -> pd.DataFrame:
    """reports/relations.csv: the largest number of edits by relation, the relations that edit best first.

    Of the largest number, as what many edits at once do to each other is what tells relations apart; of one edit,
    nearly all succeed. The unedited model's rows are of the same facts. Relations are in the order of S, means over
    the methods.
    """
    scaling = rows[rows["study"] == "scaling"]
    most = int(scaling["n_edits"].max())
    edited = scaling[scaling["n_edits"] == most]
    scored = set(edited["fact_id"])
    parts = [(UNEDITED, 0), *((method, most) for method in methods)] if most else [(UNEDITED, 0)]
    found = []
    for method, n in parts:
        own = scaling[(scaling["method"] == method) & (scaling["n_edits"] == n)]
        facts = by_fact(own[own["fact_id"].isin(scored)])
        for relation, group in facts.groupby("relation", sort=True):
            row = {"relation": relation, "method": method, "n_edits": n, "n_facts": len(group)}
            found.append(row | summary(group[list(IN_S)].to_numpy(dtype=np.float64), plan))
    table = pd.DataFrame(found, columns=list(RELATION_COLUMNS))
    mean = table[table["method"] != UNEDITED].groupby("relation")["S"].mean()
    place = {relation: i for i, relation in enumerate(mean.sort_values(ascending=False, kind="stable").index)}
    return table.sort_values(by="relation", key=lambda names: names.map(place), kind="stable", ignore_index=True)


def mixtures_table(rows: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """reports/mixtures.csv: facts of two relations edited together, and apart.

    Returns
    -------
    DataFrame with the columns MIXTURE_COLUMNS, a row a pair. Both ways the same facts are scored, half of them of each
    relation: edited together (S, ...), and each relation's among as many edits of its own relation (S_apart, ...);
    the difference is together less apart, its interval from resampled facts with both of their scores.
    """
    found = []
    for study in (name for name in rows["study"].unique() if "+" in str(name)):
        together = rows[rows["study"] == study]
        a, b = together["relation"].unique()
        mixed = by_fact(together)
        apart = pd.concat([by_fact(rows[rows["study"] == relation]) for relation in (a, b)])
        both = mixed.index.intersection(apart.index, sort=False)
        one, other = (facts.loc[both, list(IN_S)].to_numpy(dtype=np.float64) for facts in (mixed, apart))
        row: dict[str, object] = {"relation_a": a, "relation_b": b, "method": together["method"].iloc[0]}
        row |= {"n_edits": int(together["n_edits"].iloc[0]), "n_facts": len(both)}
        row |= summary(one, plan)
        row |= {_named(name, "apart"): value for name, value in summary(other, plan).items()}
        found.append(row | _difference(one, other, plan))
    return pd.DataFrame(found, columns=list(MIXTURE_COLUMNS))


def _named(column: str, what: str) -> str:
    """S_low as S_apart_low."""
    name, _, end = column.partition("_")
    return f"{name}_{what}_{end}" if end else f"{name}_{what}"


def _difference(one: _Floats, other: _Floats, plan: Resampling) -> dict[str, float]:
    mean, low, high, n = mean_interval(one - other, plan)
    s = [float(harmonic_mean(mean_interval(values, plan)[0])) for values in (one, other)]
    ends = (float("nan"), float("nan"))
    if len(one) >= 2:
        drawn = [harmonic_mean(resampled_means(values, plan)) for values in (one, other)]
        ends = interval(drawn[0] - drawn[1], int(n.min()), plan.confidence)
    found = with_ends("S_difference", s[0] - s[1], *ends)
    for name, *three in zip(IN_S, mean, low, high, strict=True):
        found |= with_ends(f"{name}_difference", *three)
    return found


def places_table(edits: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """reports/places.csv: MEMIT, one fact at a time, by the width of its window and the layer in the window's middle.

    edits: data/edits' rows of several windows. Returns a DataFrame with the columns PLACE_COLUMNS; acts is False where
    nothing that the window changes can reach the answer.
    """
    found = []
    for window, wide in edits.groupby("window", sort=True) if len(edits) else ():
        facts = fact_measures(wide)
        acts = wide.groupby("layer")["acts"].all()
        for layer, group in facts.groupby("layer", sort=True):
            row = {"window": window, "layer": layer, "n_facts": len(group), "acts": bool(acts[layer])}
            found.append(row | summary(group[list(IN_S)].to_numpy(dtype=np.float64), plan))
    return pd.DataFrame(found, columns=list(PLACE_COLUMNS))
