"""How much of an edit's success the edited layer explains, and what the trace adds to it: the table of regressions.

The regressions are those of Hase et al. 2023 (section 4, tables 3 to 6): R² of score ~ C(layer), score ~ trace and
score ~ C(layer) * trace, and the F-test of the third against the first. That test takes the rows of one fact for
independent; they are not. What rests on facts is in pipeline.analysis.inference (gain over chance, permutation tests)
and pipeline.analysis.slopes (within a fact, and on held-out facts); docs/statistics.md says what each number means and
how often it errs. Holm 1979 and Benjamini and Hochberg 1995 correct the two kinds of p-value over the whole table.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.tools.sm_exceptions import SingularMatrixWarning

from pipeline.analysis.inference import Gain, dealings, dealt_r2_diff, gain_inference
from pipeline.analysis.profiles import NEGLIGIBLE, Profiles, Resampling, profiles, r2_layer_and_diff, standardized
from pipeline.analysis.slopes import HeldOut, Within, held_out, within_slope

REGRESSION_COLUMNS = (
    "method", "problem", "score", "trace_module", "trace_window", "trace_measure", "n_facts", "n_rows", "n_layers",
    "r2_layer", "r2_trace", "r2_both", "r2_diff", "r2_layer_all", "r2_both_all", "partial_r2", "chance", "gain",
    "gain_low", "gain_high", "gain_bound", "f_pvalue", "permutation_pvalue", "permutation_pvalue_all",
    "within_slope", "within_low", "within_high", "within_pvalue",
    "cv_r2_layer", "cv_r2_both", "cv_gain", "cv_gain_low", "cv_gain_high", "rho_within_layer",
    "n_relations", "permutation_holm", "permutation_fdr", "within_holm", "within_fdr",
)  # fmt: skip

MIN_FACTS = 3  # with two facts in a layer, every line fits perfectly


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The paper's numbers: R² of its three models and the F-test's p-value (NaN where undefined)."""

    r2_layer: float = np.nan
    r2_trace: float = np.nan
    r2_both: float = np.nan
    f_pvalue: float = np.nan


@dataclass(frozen=True, kw_only=True)
class Design:
    """What the regressions are made of: whether layers where the method cannot act stay, folds, resampling."""

    keep_null_layers: bool
    folds: int
    plan: Resampling


def regression_table(
    scores: pd.DataFrame, scores_list: Sequence[str], trace_measures: Sequence[str], design: Design
) -> pd.DataFrame:
    """All regressions: one row per method, problem, score, trace module, trace window and trace measure.

    Parameters
    ----------
    scores : scores.parquet; rows whose score or trace is NaN are left out of that regression.
    scores_list, trace_measures : columns of `scores`.
    design : which rows, and how facts are resampled; regressions on the same facts share their dealings.

    Returns
    -------
    DataFrame with the columns REGRESSION_COLUMNS. What cannot be computed is NaN: everything with fewer than
    MIN_FACTS facts or a constant score, and all but r2_trace with one layer. Adjusted p-values are over all rows.

    Raises
    ------
    UserError
        Where a fact has two rows for one layer, as with two edit windows in one table.
    """
    variant = ["method", "problem", "trace_module", "trace_window"]
    rows = []
    for (method, problem, module, window), group in scores.groupby(variant, sort=False):
        for score in scores_list:
            for measure in trace_measures:
                names = (method, problem, score, module, window, measure)
                rows.append(
                    dict(zip(REGRESSION_COLUMNS[:6], names, strict=True)) | regress(group, score, measure, design)
                )
    table = pd.DataFrame(rows, columns=[name for name in REGRESSION_COLUMNS if not name.endswith(("_holm", "_fdr"))])
    for test in ("permutation", "within"):
        for suffix, method in (("holm", "holm"), ("fdr", "fdr_bh")):
            table[f"{test}_{suffix}"] = adjusted(table[f"{test}_pvalue"], method)
    return table[list(REGRESSION_COLUMNS)]


def adjusted(pvalues: "pd.Series[float]", method: str) -> "pd.Series[float]":
    """p-values adjusted for the number that are not NaN, by statsmodels' `method`; NaN stays NaN."""
    result = pvalues.astype(float).copy()
    there = result.notna()
    if there.any():
        result[there] = multipletests(result[there].to_numpy(), method=method)[1]
    return result


def regress(group: pd.DataFrame, score: str, measure: str, design: Design) -> dict[str, float]:
    """One row of `regression_table`, from n_facts to n_relations; `group` holds one row per fact_id and layer."""
    every = of_regression(group, score, measure)
    chosen = every if design.keep_null_layers else every[every["acts"]]
    rows = chosen.dropna(subset=["score", "trace"])
    n_facts = int(rows["fact_id"].nunique())
    fit, fit_all = Fit(), Fit()
    chance, gain, slope, cv, rho = np.nan, Gain(), Within(), HeldOut(), np.nan
    if n_facts >= MIN_FACTS and np.ptp(rows["score"]) > NEGLIGIBLE:
        fit = fit_models(rows)
        whole = every.dropna(subset=["score", "trace"])
        fit_all = fit if len(whole) == len(rows) else fit_models(whole)
        if rows["layer"].nunique() > 1:
            facts = profiles(chosen)
            chance = chance_r2_diff(facts, design.plan)
            gain = gain_inference(facts, r2_layer_and_diff(facts)[1], chance, design.plan)
            slope = within_slope(facts, design.plan.confidence)
            cv = held_out(facts, design.folds, design.plan)
            rho = rank_correlation(rows)
    r2_diff = fit.r2_both - fit.r2_layer
    left = 1 - fit.r2_layer
    return {
        "n_facts": n_facts,
        "n_rows": len(rows),
        "n_layers": int(rows["layer"].nunique()),
        "r2_layer": fit.r2_layer,
        "r2_trace": fit.r2_trace,
        "r2_both": fit.r2_both,
        "r2_diff": r2_diff,
        "r2_layer_all": fit_all.r2_layer,
        "r2_both_all": fit_all.r2_both,
        "partial_r2": r2_diff / left if left > NEGLIGIBLE else np.nan,
        "chance": chance,
        "gain": r2_diff - chance,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "gain_bound": gain.bound,
        "f_pvalue": fit.f_pvalue,
        "permutation_pvalue": gain.pvalue,
        "permutation_pvalue_all": gain.pvalue_all,
        "within_slope": slope.slope,
        "within_low": slope.low,
        "within_high": slope.high,
        "within_pvalue": slope.pvalue,
        "cv_r2_layer": cv.r2_layer,
        "cv_r2_both": cv.r2_both,
        "cv_gain": cv.gain,
        "cv_gain_low": cv.low,
        "cv_gain_high": cv.high,
        "rho_within_layer": rho,
        "n_relations": int(rows["relation"].nunique()),
    }


def of_regression(group: pd.DataFrame, score: str, measure: str) -> pd.DataFrame:
    """The columns of scores.parquet that a regression uses: fact_id, relation, layer, acts, score and trace."""
    names = ["fact_id", "relation", "layer", "acts"]
    return group[[*names, score, measure]].set_axis([*names, "score", "trace"], axis=1)


def fit_models(rows: pd.DataFrame) -> Fit:
    """Fit score ~ C(layer), score ~ trace and score ~ C(layer) * trace by least squares, in statsmodels.

    `rows` has the columns layer, score and trace. With one layer only r2_trace is defined; with a constant
    trace the models with and without it agree and there is nothing to test.
    """
    rows = standardized(rows)
    r2_trace = smf.ols("score ~ trace", rows).fit().rsquared if rows["trace"].any() else 0.0
    if rows["layer"].nunique() < 2:
        return Fit(r2_trace=r2_trace)
    layer = smf.ols("score ~ C(layer)", rows).fit()
    with warnings.catch_warnings():
        # A layer whose trace does not vary has no slope of its own; R² and the ranks in the F-test know that.
        warnings.simplefilter("ignore", SingularMatrixWarning)
        both = smf.ols("score ~ C(layer) * trace", rows).fit()
    f_pvalue = np.nan
    if both.df_resid > 0 and both.df_resid < layer.df_resid and both.ssr > NEGLIGIBLE * both.centered_tss:
        f_pvalue = float(both.compare_f_test(layer)[1])
    # The larger model fits no worse; rounding may say so by 1e-16.
    return Fit(
        r2_layer=layer.rsquared,
        r2_trace=r2_trace,
        r2_both=max(both.rsquared, layer.rsquared),
        f_pvalue=f_pvalue,
    )


def rank_correlation(rows: pd.DataFrame) -> float:
    """Spearman's correlation of score and trace within each layer, averaged over layers where both vary."""
    found = []
    for _, at in rows.groupby("layer"):
        if len(at) >= MIN_FACTS and at["score"].nunique() > 1 and at["trace"].nunique() > 1:
            found.append(float(stats.spearmanr(at["score"], at["trace"]).statistic))
    return float(np.mean(found)) if found else np.nan


def chance_r2_diff(facts: Profiles, plan: Resampling) -> float:
    """R² difference to expect when each trace profile is dealt to a fact at random.

    In a layer with n facts the squared correlation of dealt values is 1 / (n - 1) on average, exactly and whatever
    the correlation between layers: where no row is missing and the trace varies in every layer, (1 - r2_layer) /
    (facts - 1). Elsewhere the mean over dealings.
    """
    if facts.present.all() and (facts.x**2).sum(0).all():
        return float((facts.y**2).sum()) / facts.total / (facts.n_facts - 1)
    over_all = dealings(np.zeros_like(facts.relation), plan.permutations, plan.seed)
    return float(dealt_r2_diff(facts, over_all).mean())
