"""Scores of edits, and the trace measures they are set against.

The scores are those of Hase et al. 2023, "Does Localization Inform Editing?", section 3.2 and its appendix on
metrics: how far an edit moved a probability, as a share of how far it could have moved. The trace measures
are Meng et al. 2022's fraction restored and effect, reduced to one number per fact and layer.

Every score lies in [0, 1]: a probability that moved the wrong way scores 0. Where nothing could move (p = 1
for a rise, p = 0 for a fall) there is nothing to score, and the score is NaN rather than 0, which would read
as a failed edit.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from pipeline.analysis.profiles import Resampling, mean_interval
from pipeline.errors import UserError

TRACE_MEASURES = ("fraction", "effect", "last_subject", "last_subject_fraction")
SCORE_COLUMNS = (
    "fact_id", "relation", "problem", "method", "window", "layer",
    "acts",
    "rewrite", "paraphrase", "paraphrase_first", "neighborhood", "neighborhood_first", "overall", "reverse",
    "trace_module", "trace_window", *TRACE_MEASURES,
)  # fmt: skip

# Problems whose target is pushed down; in all others it is pushed up.
FALLING_PROBLEMS = frozenset({"fact_erasure"})

# How a trace by layer takes a prompt's tokens together: a line's name, and the roles it is the mean of.
_TRACE_LINES = (
    ("largest over all tokens", None),
    ("last subject token", ("last_subject",)),
    ("earlier subject tokens", ("first_subject", "middle_subject")),
    ("tokens between subject and last", ("first_subsequent", "further")),
    ("last token", ("last_token",)),
)
_EDIT = ["fact_id", "problem", "method", "window", "layer"]
_TRACE = ["fact_id", "module", "window", "layer"]


def rise(p: ArrayLike, p_new: ArrayLike) -> NDArray[np.float64]:
    """Share of the possible rise that was reached: (p' - p) / (1 - p), and 0 where the probability fell.

    Parameters: probabilities before and after, of any shapes that broadcast. NaN where p = 1 or either is
    NaN.
    """
    p, p_new = np.asarray(p, dtype=np.float64), np.asarray(p_new, dtype=np.float64)
    return _share(p_new - p, 1 - p)


def fall(p: ArrayLike, p_new: ArrayLike) -> NDArray[np.float64]:
    """Share of the possible fall that was reached: (p - p') / p, and 0 where the probability rose.

    Parameters: probabilities before and after, of any shapes that broadcast. NaN where p = 0 or either is
    NaN.
    """
    p, p_new = np.asarray(p, dtype=np.float64), np.asarray(p_new, dtype=np.float64)
    return _share(p - p_new, p)


def neighborhood(p: ArrayLike, p_new: ArrayLike) -> NDArray[np.float64]:
    """How still a neighbor's probability stayed: 1 - |p' - p| / (0.5 + |p - 0.5|), 1 where it did not move.

    The divisor is the larger of p and 1 - p, the furthest that it could have moved, so no p makes this
    undefined. NaN where either is NaN.
    """
    p, p_new = np.asarray(p, dtype=np.float64), np.asarray(p_new, dtype=np.float64)
    return np.clip(1 - np.abs(p_new - p) / (0.5 + np.abs(p - 0.5)), 0, 1)


ESSENCE_RISE = 5.0  # the rise of the perplexity at which nothing is left of a subject's essence


def essence(ppl: ArrayLike, ppl_new: ArrayLike) -> NDArray[np.float64]:
    """How well what the model had to say of the subject is kept: 1 - clip(ppl' - ppl, 0, 5) / 5, 1 where it is as
    likely as before, or more.

    Parameters: perplexities before and after (`pipeline.measure.essence`), of any shapes that broadcast. NaN where
    either is NaN, or both are infinite.
    """
    ppl, ppl_new = np.asarray(ppl, dtype=np.float64), np.asarray(ppl_new, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return 1 - np.clip(ppl_new - ppl, 0, ESSENCE_RISE) / ESSENCE_RISE


def _share(moved: NDArray[np.float64], possible: NDArray[np.float64]) -> NDArray[np.float64]:
    moved, possible = np.broadcast_arrays(moved, possible)
    share = np.full(moved.shape, np.nan)
    with np.errstate(over="ignore"):  # by the smallest of all numbers; the share is then cut to 1
        np.divide(moved, possible, out=share, where=possible > 0)
    return np.clip(share, 0, 1)


def score_table(edits: pd.DataFrame, facts: pd.DataFrame, trace: pd.DataFrame, erasure_min_p: float) -> pd.DataFrame:
    """One row per fact, problem, method, layer, trace module and trace window: scores beside trace measures.

    Parameters
    ----------
    edits : the edits tables of all methods and problems, one below the other; one row per edit and prompt.
    facts : facts.parquet; gives each fact's relation.
    trace : trace.parquet; one row per fact, module, window, token and layer.
    erasure_min_p : a fact whose p(true) on its own prompt lies below this has too little to erase.

    Returns
    -------
    DataFrame with the columns SCORE_COLUMNS. An edit that failed (status not "ok"), and an erasure of a fact below
    `erasure_min_p`, keeps its row with NaN scores; `count_edits` counts them. A score over several prompts is the
    mean of the prompts' scores, left out those that are NaN; paraphrase_first and neighborhood_first are of the first
    prompt alone, as Hase et al.'s code scores. `reverse` is of the subject after a prompt about the edit's target, NaN
    for facts without such a prompt. `overall`, the mean of rewrite, paraphrase and neighborhood, is NaN unless all of
    them are numbers. `acts` is False where the edit cannot reach the answer.

    Raises
    ------
    UserError
        Where an edited fact is not in `facts`, or was not traced at a layer where it was edited, or a prompt
        occurs twice.
    """
    scores = _edit_scores(edits, erasure_min_p)
    relations = facts.set_index("fact_id")["relation"]
    scores.insert(1, "relation", scores["fact_id"].map(relations))
    if scores["relation"].isna().any():
        fact_id = scores.loc[scores["relation"].isna(), "fact_id"].iloc[0]
        raise UserError(f"data/edits: fact {fact_id} is not in data/facts.parquet; run the edit stage again")
    measures = trace_measures(trace).rename(columns={"module": "trace_module", "window": "trace_window"})
    variants = measures[["trace_module", "trace_window"]].drop_duplicates()
    rows = scores.merge(variants, how="cross").merge(
        measures, on=["fact_id", "layer", "trace_module", "trace_window"], how="left", indicator="traced"
    )
    missing = rows[rows["traced"] != "both"]
    if len(missing):
        row = missing.iloc[0]
        raise UserError(
            f"data/trace.parquet: fact {row['fact_id']} was edited at layer {row['layer']} (counted from 0) "
            f"but not traced there with module {row['trace_module']}, window {row['trace_window']}; run the "
            "trace stage again"
        )
    # Methods and problems keep the order of the edits table, which is that of params.yaml.
    order = {name: i for i, name in enumerate([*edits["method"].unique(), *edits["problem"].unique()])}
    keys = ["method", "problem", "trace_module", "trace_window", "fact_id", "window", "layer"]
    rows = rows[list(SCORE_COLUMNS)].sort_values(
        keys, key=lambda column: column.map(order) if column.name in ("method", "problem") else column
    )
    return rows.reset_index(drop=True)


def trace_measures(trace: pd.DataFrame) -> pd.DataFrame:
    """Reduce the tokens of a trace to one row per fact_id, module, window, layer with the four
    TRACE_MEASURES.

    `fraction` and `effect` are the largest over all tokens of the prompt, each for itself; `last_subject` and
    `last_subject_fraction` are the effect and the fraction at the last token of the subject, NaN where no
    token of the prompt has that role.
    """
    largest = trace.groupby(_TRACE, sort=True)[["fraction", "effect"]].max()
    last = trace[trace["token_role"] == "last_subject"].groupby(_TRACE)[["effect", "fraction"]].max()
    last.columns = pd.Index(["last_subject", "last_subject_fraction"])
    return largest.join(last).reset_index()


def count_edits(edits: pd.DataFrame, erasure_min_p: float) -> pd.DataFrame:
    """Count the edits scored and those left out: columns method, problem, reason, edits, facts.

    `reason` is "" on the row of the scored edits, which comes first for each method and problem, though there
    be none; each reason to leave edits out (the status of an edit that is not "ok", or a p(true) too small to
    erase) has a row of its own. `facts` counts the facts that these edits are of.
    """
    own = _own_prompt(edits).reset_index()
    reason = own["status"].where(own["status"] != "ok", "").astype(object)
    reason[(reason == "") & _too_small(own, erasure_min_p)] = f"dropped: p(true) is below {erasure_min_p:g}"
    rows = []
    for (method, problem), group in own.assign(reason=reason).groupby(["method", "problem"], sort=False):
        for why in ["", *sorted(set(group["reason"]) - {""})]:
            facts = group.loc[group["reason"] == why, "fact_id"]
            rows.append((method, problem, why, len(facts), facts.nunique()))
    return pd.DataFrame(rows, columns=["method", "problem", "reason", "edits", "facts"])


def trace_by_layer_table(trace: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """Mean tracing effect by layer, over facts: columns module, window, line, layer, effect, low, high, n.

    `line` says which tokens: the largest effect over all tokens of a prompt, or the mean over its tokens of
    some roles. A fact without such a token is not counted in that line; `n` counts the facts.
    """
    tables = []
    for (module, window), group in trace.groupby(["module", "window"], sort=True):
        for line, roles in _TRACE_LINES:
            chosen = group if roles is None else group[group["token_role"].isin(roles)]
            if chosen.empty:
                continue
            effects = chosen.groupby(["fact_id", "layer"])["effect"]
            profile = (effects.max() if roles is None else effects.mean()).unstack("layer").sort_index(axis=1)
            means = _means_by(profile, plan, "effect")
            tables.append(means.assign(module=module, window=window, line=line))
    columns = ["module", "window", "line", "layer", "effect", "low", "high", "n"]
    return pd.concat(tables, ignore_index=True)[columns]


def rewrite_by_layer_table(scores: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """Mean rewrite score by edited layer, over facts: columns method, problem, layer, rewrite, low, high,
    n."""
    once = scores.drop_duplicates(["method", "problem", "fact_id", "window", "layer"])
    tables = []
    for (method, problem), group in once.groupby(["method", "problem"], sort=False):
        profile = group.pivot_table(index="fact_id", columns="layer", values="rewrite", dropna=False).sort_index()
        means = _means_by(profile, plan, "rewrite")
        tables.append(means.assign(method=method, problem=problem))
    return pd.concat(tables, ignore_index=True)[["method", "problem", "layer", "rewrite", "low", "high", "n"]]


def _means_by(profile: pd.DataFrame, plan: Resampling, name: str) -> pd.DataFrame:
    """Means over facts of a table facts by layers: columns layer, `name`, low, high, n."""
    mean, low, high, n = mean_interval(profile.to_numpy(float), plan)
    layers = profile.columns.to_numpy()
    return pd.DataFrame({"layer": layers, name: mean, "low": low, "high": high, "n": n})


def one_row_a_prompt(edits: pd.DataFrame, edit: Sequence[str], why: str = "") -> None:
    """Raise UserError where an edit (its columns: `edit`) has two rows for a prompt; `why` ends the sentence."""
    twice = edits.duplicated([*edit, "prompt_kind", "prompt_index"])
    if twice.any():
        row = edits[twice].iloc[0]
        raise UserError(
            f"data/edits: fact {row['fact_id']} ({row['method']}, {row['problem']}) has two rows for layer "
            f"{row['layer']}, {row['prompt_kind']} prompt {row['prompt_index']}; there must be one{why}"
        )


def _edit_scores(edits: pd.DataFrame, erasure_min_p: float) -> pd.DataFrame:
    one_row_a_prompt(edits, _EDIT)
    falling = edits["problem"].isin(FALLING_PROBLEMS)
    moved = np.where(falling, fall(edits["p_pre"], edits["p_post"]), rise(edits["p_pre"], edits["p_post"]))
    still = neighborhood(edits["p_pre"], edits["p_post"])
    kind = edits["prompt_kind"]
    prompts = edits[_EDIT].assign(
        rewrite=np.where(kind == "rewrite", moved, np.nan),
        paraphrase=np.where(kind == "paraphrase", moved, np.nan),
        paraphrase_first=np.where((kind == "paraphrase") & (edits["prompt_index"] == 0), moved, np.nan),
        neighborhood=np.where(kind == "neighborhood", still, np.nan),
        neighborhood_first=np.where((kind == "neighborhood") & (edits["prompt_index"] == 0), still, np.nan),
        reverse=np.where(kind == "reverse", moved, np.nan),
    )
    scores = prompts.groupby(_EDIT, sort=True).mean()
    parts = scores[["rewrite", "paraphrase", "neighborhood"]]
    scores["overall"] = parts.mean(axis=1, skipna=False)
    own = _own_prompt(edits).reindex(scores.index)
    if own["status"].isna().any():
        fact_id, problem, method, _, layer = scores.index[own["status"].isna()][0]
        raise UserError(
            f"data/edits: fact {fact_id} ({method}, {problem}) has no row of prompt_kind rewrite at layer "
            f"{layer}; run the edit stage again"
        )
    left_out = (own["status"] != "ok") | _too_small(own.reset_index(), erasure_min_p).to_numpy()
    scores.loc[left_out] = np.nan
    scores.insert(0, "acts", own["acts"].astype(bool))
    return scores.reset_index()


def _own_prompt(edits: pd.DataFrame) -> pd.DataFrame:
    """Status, p_pre and acts of each edit, from its row for the fact's own prompt; indexed by the keys of an
    edit."""
    return edits[edits["prompt_kind"] == "rewrite"].set_index(_EDIT)[["status", "p_pre", "acts"]]


def _too_small(own: pd.DataFrame, erasure_min_p: float) -> "pd.Series[bool]":
    return (own["problem"] == "fact_erasure") & (own["p_pre"] < erasure_min_p)
