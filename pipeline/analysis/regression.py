"""How much of an edit's success the edited layer explains, and what the trace adds to it.

The regressions are those of Hase et al. 2023 (section 4, tables 3 to 6): R² of score ~ C(layer), score ~
trace and score ~ C(layer) * trace, and the F-test of the third against the first. That test takes the rows of
one fact for independent; they are not, so two statements that rest on facts stand beside it.

Cluster test (`cluster_pvalue`). A Wald test of all trace terms at once has as many constraints as there are
layers. A covariance clustered by fact has a rank below the number of facts, so with a dozen facts and thirty
layers the test does not exist; and where it does, it rejects too often unless facts outnumber layers by far
(with 40 facts and 30 layers, at the 5 % level: 97 % of the time with statsmodels' F reference, 8 to 15 % with
Hotelling's). So the tested hypothesis is one constraint, whatever the number of facts: in score ~ C(layer) +
trace the common slope is 0. Its variance is the jackknife over whole facts (CV3 of MacKinnon, Nielsen and
Webb 2023, "Cluster-robust inference"), its reference Student's t with facts - 1 degrees of freedom. Simulated
under the null, with scores and traces correlated within facts (12 to 100 facts, 9 or 30 layers, bell-shaped
or skewed and bounded): 2 to 8 % at the 5 % level, where the F-test rejects in 7 to 17 %. What this test
cannot see is slopes that differ between layers and average to zero.

Interval (`r2_diff_low`, `r2_diff_high`). The difference of two nested R² is never negative, and a trace that
has nothing to do with the score adds about (1 - R²) / (facts - 1) by fitting chance (`chance_r2_diff`).
Resampling facts with repeats doubles that bias, so the plain percentile interval lies above the truth: with
12 facts and no relation at all it never held 0. Here twice the bootstrap's estimate of the bias is taken off
the resampled differences, once for the sample's and once for the resample's; the quantiles are those that
widen a percentile interval to Student's t for the number of facts (Hesterberg 2015, "What teachers should
know about the bootstrap", section 5.2), and both ends are kept at 0 or above. So the interval is one for the
difference in the population of facts, and may lie below the sample's own r2_diff. Its simulated coverage at a
nominal 95 %, with 12 to 60 facts: 94 to 100 % where the trace adds 0 to 0.02, 90 to 96 % where it adds 0.04
to 0.5; the plain percentile interval's: 0 to 74 %, and 34 to 96 %. The bias-corrected quantiles (BC, BCa) do
not exist here, as nearly all resampled differences exceed the sample's.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from numpy.typing import NDArray
from scipy import stats
from statsmodels.tools.sm_exceptions import SingularMatrixWarning

from pipeline.errors import UserError
from pipeline.seeds import derive

REGRESSION_COLUMNS = (
    "method", "problem", "score", "trace_module", "trace_window", "trace_measure", "n_facts", "n_rows",
    "r2_layer", "r2_trace", "r2_both", "r2_diff", "f_pvalue", "cluster_pvalue", "r2_diff_low", "r2_diff_high",
)  # fmt: skip

MIN_FACTS = 3  # with two facts in a layer, every line fits perfectly

# A layer's trace is constant if its spread is below this share of the whole trace's: rounding, not signal.
_NEGLIGIBLE = 1e-10

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Scores and trace of every fact at every layer, a row per fact; `present` marks the pairs that exist.

    All three of shape (F, L). `x` (trace) and `y` (score) are centred on their layer's mean and 0 where not
    present; each is exactly 0 in a layer where it varies by rounding only. `layer_means` (L,) are the means
    taken off y.
    """

    x: _Floats
    y: _Floats
    present: _Floats
    layer_means: _Floats

    @property
    def n_facts(self) -> int:
        """F, the number of facts."""
        return len(self.x)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The paper's numbers: R² of its three models and the F-test's p-value (NaN where undefined)."""

    r2_layer: float = np.nan
    r2_trace: float = np.nan
    r2_both: float = np.nan
    f_pvalue: float = np.nan


def regression_table(
    scores: pd.DataFrame,
    scores_list: Sequence[str],
    trace_measures: Sequence[str],
    samples: int,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    """All regressions: one row per method, problem, score, trace module, trace window and trace measure.

    Parameters
    ----------
    scores : scores.parquet; rows whose score or trace is NaN are left out of that regression.
    scores_list, trace_measures : columns of `scores`.
    samples : bootstrap resamples of facts.
    confidence : of the interval of r2_diff, in (0, 1).
    seed : params.seed. The same resamples serve every regression on the same number of facts.

    Returns
    ------- DataFrame with the columns REGRESSION_COLUMNS. What cannot be computed is NaN: everything with
    fewer than MIN_FACTS facts or a constant score, and all but r2_trace with one layer.

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
                numbers = regress(group, score, measure, samples, confidence, seed)
                rows.append(dict(zip(REGRESSION_COLUMNS[:6], names, strict=True)) | numbers)
    return pd.DataFrame(rows, columns=list(REGRESSION_COLUMNS))


def regress(
    group: pd.DataFrame, score: str, measure: str, samples: int, confidence: float, seed: int
) -> dict[str, float]:
    """One row of `regression_table`, from n_facts on; `group` holds one row per fact_id and layer."""
    rows = group[["fact_id", "layer", score, measure]].dropna()
    rows.columns = pd.Index(["fact_id", "layer", "score", "trace"])
    n_facts = int(rows["fact_id"].nunique())
    numbers: dict[str, float] = {"n_facts": n_facts, "n_rows": len(rows)}
    fit, cluster_pvalue, low, high = Fit(), np.nan, np.nan, np.nan
    if n_facts >= MIN_FACTS and np.ptp(rows["score"]) > _NEGLIGIBLE:
        fit = fit_models(rows)
        if rows["layer"].nunique() > 1:
            facts = profiles(rows)
            cluster_pvalue = slope_pvalue(facts)
            low, high = r2_diff_interval(facts, samples, confidence, seed)
    return numbers | {
        "r2_layer": fit.r2_layer,
        "r2_trace": fit.r2_trace,
        "r2_both": fit.r2_both,
        "r2_diff": fit.r2_both - fit.r2_layer,
        "f_pvalue": fit.f_pvalue,
        "cluster_pvalue": cluster_pvalue,
        "r2_diff_low": low,
        "r2_diff_high": high,
    }


def fit_models(rows: pd.DataFrame) -> Fit:
    """Fit score ~ C(layer), score ~ trace and score ~ C(layer) * trace by least squares, in statsmodels.

    `rows` has the columns layer, score and trace. With one layer only r2_trace is defined; with a constant
    trace the models with and without it agree and there is nothing to test.
    """
    rows = _standardized(rows)
    r2_trace = smf.ols("score ~ trace", rows).fit().rsquared if rows["trace"].any() else 0.0
    if rows["layer"].nunique() < 2:
        return Fit(r2_trace=r2_trace)
    layer = smf.ols("score ~ C(layer)", rows).fit()
    with warnings.catch_warnings():
        # A layer whose trace does not vary has no slope of its own; R² and the ranks in the F-test know that.
        warnings.simplefilter("ignore", SingularMatrixWarning)
        both = smf.ols("score ~ C(layer) * trace", rows).fit()
    f_pvalue = np.nan
    if both.df_resid > 0 and both.df_resid < layer.df_resid and both.ssr > _NEGLIGIBLE * both.centered_tss:
        f_pvalue = float(both.compare_f_test(layer)[1])
    # The larger model fits no worse; rounding may say so by 1e-16.
    return Fit(
        r2_layer=layer.rsquared,
        r2_trace=r2_trace,
        r2_both=max(both.rsquared, layer.rsquared),
        f_pvalue=f_pvalue,
    )


def _standardized(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the trace at mean 0 and variance 1, and at its layer's mean where it varies there by rounding
    only.

    No R² depends on the trace's origin and scale; the condition of the design does. A constant trace becomes
    0.
    """
    trace = rows["trace"]
    spread = np.std(trace)
    if spread <= _NEGLIGIBLE * np.abs(trace).max():
        return rows.assign(trace=0.0)
    trace = (trace - trace.mean()) / spread
    by_layer = trace.groupby(rows["layer"])
    flat = by_layer.transform("std", ddof=0) < _NEGLIGIBLE
    return rows.assign(trace=trace.where(~flat, by_layer.transform("mean")))


def profiles(rows: pd.DataFrame) -> Profiles:
    """Lay out rows (fact_id, layer, score, trace) as facts by layers, facts and layers in ascending order.

    Raises UserError where a fact has two rows for a layer.
    """
    twice = rows.duplicated(["fact_id", "layer"])
    if twice.any():
        row = rows[twice].iloc[0]
        raise UserError(
            f"data/scores.parquet: fact {row['fact_id']} has two rows for layer {row['layer']} of one "
            "regression; there must be one, so edit with one window at a time"
        )
    rows = _standardized(rows)
    x, y = (
        rows.pivot(index="fact_id", columns="layer", values=name).sort_index().sort_index(axis=1).to_numpy(float)
        for name in ("trace", "score")
    )
    present = ~np.isnan(x)
    n = present.sum(0)
    layer_means = np.where(present, y, 0).sum(0) / n
    x = np.where(present, x - np.where(present, x, 0).sum(0) / n, 0)
    x[:, np.sqrt((x**2).sum(0) / n) < _NEGLIGIBLE] = 0
    y = np.where(present, y - layer_means, 0)
    y[:, np.sqrt((y**2).sum(0) / n) < _NEGLIGIBLE * np.std(rows["score"])] = 0
    return Profiles(
        x=x,
        y=y,
        present=present.astype(np.float64),
        layer_means=layer_means,
    )


def r2_layer_and_diff(facts: Profiles, weights: _Floats) -> tuple[_Floats, _Floats]:
    """R² of score ~ C(layer), and what C(layer) * trace adds to it, for each weighting of the facts.

    Parameters: weights of shape (B, F), how often each fact counts. Returns two arrays of shape (B,).

    C(layer) * trace is one line per layer, so the sums of each layer suffice: with S the weighted sums of
    squares and products about the layer's means, the lines explain sum of Sxy² / Sxx beyond the layer means.
    A layer whose trace does not vary among the weighted facts explains nothing.
    """
    n = weights @ facts.present  # (B, L)
    x, y, xx, xy, yy = (weights @ values for values in (facts.x, facts.y, facts.x**2, facts.x * facts.y, facts.y**2))
    inverse_n = 1 / np.maximum(n, 1)
    xx, xy, yy = xx - x**2 * inverse_n, xy - x * y * inverse_n, yy - y**2 * inverse_n
    varies = xx > _NEGLIGIBLE * (facts.x**2).sum(0)
    explained = np.where(varies, xy**2, 0) / np.where(varies, xx, 1)
    means = facts.layer_means + y * inverse_n
    center = (n * means).sum(1, keepdims=True) / n.sum(1, keepdims=True)
    between = (n * (means - center) ** 2).sum(1)
    total = between + yy.sum(1)
    defined = total > 0
    total = np.where(defined, total, np.nan)
    return between / total, np.minimum(explained, yy).sum(1) / total


def r2_diff_interval(facts: Profiles, samples: int, confidence: float, seed: int) -> tuple[float, float]:
    """Fact-resampled bootstrap interval of the R² difference, its bias removed; the module's text has the
    reasons.

    Whole facts are drawn with replacement, each with its profile over layers. Both ends are at least 0.
    """
    rng = np.random.default_rng(derive(seed, "fact bootstrap"))
    count = facts.n_facts
    weights = rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
    sample = r2_layer_and_diff(facts, np.ones((1, count)))[1][0]
    resampled = r2_layer_and_diff(facts, weights)[1]
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        return np.nan, np.nan
    bias = resampled.mean() - sample
    low, high = np.quantile(resampled - 2 * bias, expanded_levels(count, confidence))
    return max(float(low), 0.0), max(float(high), 0.0)


def slope_pvalue(facts: Profiles) -> float:
    """p-value of "no common slope" in score ~ C(layer) + trace, clustered by fact; two-sided.

    Slope over its jackknife standard error over facts, against Student's t with F - 1 degrees of freedom. The
    square of this ratio is the Wald statistic of the one constraint. NaN where the trace does not vary, or a
    single fact carries all its variation, or the error is zero.
    """
    count = facts.n_facts
    slope = _common_slope(facts, np.ones((1, count)))[0]
    without_one = _common_slope(facts, np.ones((count, count)) - np.eye(count))
    error = np.sqrt((count - 1) / count * ((without_one - slope) ** 2).sum())
    if not error > 0:  # also where it is NaN
        return np.nan
    return float(2 * stats.t.sf(abs(slope / error), count - 1))


def _common_slope(facts: Profiles, weights: _Floats) -> _Floats:
    """Slope of score ~ C(layer) + trace for each weighting of facts; weights (B, F), result (B,)."""
    inverse_n = 1 / np.maximum(weights @ facts.present, 1)
    x, y = weights @ facts.x, weights @ facts.y
    xx = (weights @ facts.x**2 - x**2 * inverse_n).sum(1)
    xy = (weights @ (facts.x * facts.y) - x * y * inverse_n).sum(1)
    varies = xx > _NEGLIGIBLE * (facts.x**2).sum()
    return np.where(varies, xy, np.nan) / np.where(varies, xx, 1)


def chance_r2_diff(r2_layer: float, n_facts: int) -> float:
    """R² difference to expect when each trace profile is dealt to a fact at random: (1 - r2_layer) / (n_facts
    - 1).

    In a layer with n facts the squared correlation of dealt values is 1 / (n - 1) on average, exactly and
    whatever the correlation between layers. Exact where no row is missing and the trace varies in every
    layer, else an approximation.
    """
    return (1 - r2_layer) / (n_facts - 1) if n_facts > 1 else np.nan


def expanded_levels(count: int, confidence: float) -> tuple[float, float]:
    """Quantile levels of a percentile interval over `count` >= 2 resampled units, widened to Student's t.

    A percentile interval uses the normal quantile and the biased variance; with a dozen units that costs
    coverage. The lower level is the normal probability of -t * sqrt(n / (n - 1)), with t the quantile of n -
    1 degrees of freedom.
    """
    t = stats.t.ppf((1 + confidence) / 2, count - 1)
    low = float(stats.norm.sf(t * np.sqrt(count / (count - 1))))
    return low, 1 - low


def mean_interval(
    values: _Floats, samples: int, confidence: float, seed: int
) -> tuple[_Floats, _Floats, _Floats, NDArray[np.int64]]:
    """Mean over facts in each column, and its fact-resampled bootstrap interval (expanded percentile).

    Parameters: values of shape (F, L), NaN where missing. Returns mean, low, high and the number of facts,
    each of shape (L,). The interval is NaN in columns with fewer than two facts, the mean in columns with
    none.
    """
    present = ~np.isnan(values)
    n = present.sum(0)
    filled = np.where(present, values, 0)
    mean = np.where(n > 0, filled.sum(0) / np.maximum(n, 1), np.nan)
    low, high = np.full(len(n), np.nan), np.full(len(n), np.nan)
    if len(values) < 2:
        return mean, low, high, n
    rng = np.random.default_rng(derive(seed, "fact bootstrap"))
    weights = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=samples).astype(np.float64)
    drawn = weights @ present
    means = np.where(drawn > 0, weights @ filled / np.maximum(drawn, 1), np.nan)  # (B, L)
    for column in np.flatnonzero(n >= 2):
        held = means[~np.isnan(means[:, column]), column]
        if len(held):
            low[column], high[column] = np.quantile(held, expanded_levels(int(n[column]), confidence))
    return mean, low, high, n
