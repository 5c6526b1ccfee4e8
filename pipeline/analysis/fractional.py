"""A check of the linear model: the same regressions by a model whose fitted scores stay between 0 and 1.

Scores are bounded and pile up at their ends, where a straight line may leave the unit interval and its slope averages
over rows that cannot move. The fractional logit (Papke and Wooldridge 1996, "Econometric methods for fractional
response variables", J. Applied Econometrics 11) fits E[score] = logistic(...) by the Bernoulli quasi-likelihood, which
is consistent for scores of any distribution in [0, 1]. R² here is 1 - SSE / SST of the fitted means, so that it can be
held against that of least squares; of C(layer) alone the two are equal. The quasi-likelihood does not minimise SSE:
what the trace adds to R² may come out below 0.

The slope is an average marginal effect of score ~ C(layer) + trace + the fact's mean trace, so that it speaks of the
layers within a fact (Papke and Wooldridge 2008, J. Econometrics 145: correlated random effects), with a covariance that
is robust to whatever rows of one fact have in common. Where scores of 0 and 1 alone let a slope grow without end
(separation), or the iteration does not end, the cell is empty and `note` says why.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy import special, stats
from statsmodels.tools.sm_exceptions import PerfectSeparationError

from pipeline.analysis.inference import dealings
from pipeline.analysis.profiles import NEGLIGIBLE, Profiles, profiles
from pipeline.analysis.regression import MIN_FACTS, REGRESSION_COLUMNS, Design, of_regression

FRACTIONAL_COLUMNS = (
    *REGRESSION_COLUMNS[:9], "at_floor", "at_ceiling", "r2_layer", "r2_trace", "r2_both", "r2_diff", "chance", "gain",
    "ame", "ame_low", "ame_high", "linear_slope", "linear_low", "linear_high", "note",
)  # fmt: skip
FLOOR, CEILING = 0.01, 0.99

_Floats = NDArray[np.float64]
_Truths = NDArray[np.bool_]
_DEALINGS = 200  # for the mean alone: its error is a fourteenth of one dealing's spread
_ROUNDS, _STEP, _SMALL = (
    60,
    4.0,
    1e-9,
)  # Newton's rounds, the most that a linear predictor moves in one, and when it is done


def fractional_table(
    scores: pd.DataFrame, scores_list: Sequence[str], trace_measures: Sequence[str], design: Design
) -> pd.DataFrame:
    """One row per method, problem, score and trace variant, in the order of `pipeline.analysis.regression`.

    Parameters
    ----------
    scores : scores.parquet.
    scores_list, trace_measures : columns of it.
    design : which rows, and how traces are dealt.

    Returns
    -------
    DataFrame with the columns FRACTIONAL_COLUMNS. at_floor, at_ceiling: share of rows at or below FLOOR, at or above
    CEILING. r2_*: of the models of `regression_table`. chance: what dealt traces add, by the mean over dealings; gain:
    r2_diff less that. ame: change of the score for a trace higher by 1, mean over rows; linear_slope: the same by least
    squares; both with intervals by facts (Student's t with facts - 1 degrees of freedom). What cannot be computed is
    NaN, and note says why.
    """
    rows = []
    for (method, problem, module, window), group in scores.groupby(
        ["method", "problem", "trace_module", "trace_window"], sort=False
    ):
        for score in scores_list:
            for measure in trace_measures:
                names = dict(
                    zip(REGRESSION_COLUMNS[:6], (method, problem, score, module, window, measure), strict=True)
                )
                rows.append(names | fractional(of_regression(group, score, measure), design))
    return pd.DataFrame(rows, columns=list(FRACTIONAL_COLUMNS))


def fractional(every: pd.DataFrame, design: Design) -> dict[str, Any]:
    """One row of `fractional_table`, from n_facts on; `every` as `of_regression` makes it."""
    chosen = every if design.keep_null_layers else every[every["acts"]]
    rows = chosen.dropna(subset=["score", "trace"])
    found: dict[str, Any] = {
        "n_facts": int(rows["fact_id"].nunique()), "n_rows": len(rows), "n_layers": int(rows["layer"].nunique()),
        "at_floor": float((rows["score"] <= FLOOR).mean()), "at_ceiling": float((rows["score"] >= CEILING).mean()),
        "note": "",
    }  # fmt: skip
    if rows["fact_id"].nunique() < MIN_FACTS:
        return found | {"note": f"fewer than {MIN_FACTS} facts"}
    if not np.ptp(rows["score"]) > NEGLIGIBLE:
        return found | {"note": "the score does not vary"}
    if rows["layer"].nunique() < 2:
        return found | {"note": "one layer"}
    facts = profiles(chosen)
    lines = fit_lines(facts)
    slope = marginal_effect(facts, design.plan.confidence)
    r2_layer = 1 - float((facts.y**2).sum()) / facts.total
    found |= {"r2_layer": r2_layer, "r2_trace": _r2_trace(facts)}
    if not lines.note:
        r2_both = 1 - lines.left / facts.total
        chance = _chance(facts, design, r2_layer)
        found |= {"r2_both": r2_both, "r2_diff": r2_both - r2_layer, "chance": chance}
        found["gain"] = r2_both - r2_layer - chance
    notes = dict.fromkeys(note for note in (lines.note, slope.note) if note)
    return found | {
        "ame": slope.ame[0], "ame_low": slope.ame[1], "ame_high": slope.ame[2], "linear_slope": slope.linear[0],
        "linear_low": slope.linear[1], "linear_high": slope.linear[2], "note": "; ".join(notes),
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Lines:
    """score ~ C(layer) * trace: `left`, its sum of squared residuals, and why there is none (then NaN), or ""."""

    left: float
    note: str


def fit_lines(facts: Profiles) -> Lines:
    """The model with a line of its own in each layer, which is one logit a layer."""
    left, separated, unended = 0.0, [], []
    for layer in range(facts.n_layers):
        there = facts.present[:, layer] > 0
        y, x = _scores(facts, layer)[there], facts.trace[there, layer]
        if not facts.x[:, layer].any():
            left += float(((y - y.mean()) ** 2).sum())
        elif is_separated(x, y):
            separated.append(layer)
        else:
            squares, ended = logit_residuals(x[None], y, np.ones((1, len(y)), dtype=np.bool_))
            left += float(squares[0])
            if not ended[0]:
                unended.append(layer)
    told = [
        f"{why} in {len(at)} layer{'' if len(at) == 1 else 's'}"
        for why, at in (("separated", separated), ("not converged", unended))
        if at
    ]
    return Lines(left=np.nan if told else left, note="; ".join(told))


def is_separated(x: _Floats, y: _Floats) -> bool:
    """Whether the quasi-likelihood of one logit in x grows without end as its slope does.

    Scores between 0 and 1 hold the line where they are; so it does only where those lie at one place of x (or there
    are none), all scores of 0 on the one side of it and all of 1 on the other (Albert and Anderson 1984, for 0 and 1).
    Where all scores are 0, or all 1, the fitted mean is just that and nothing is separated.
    """
    if (y <= 0).all() or (y >= 1).all():
        return False
    held = x[(y > 0) & (y < 1)]
    if len(held) and np.ptp(held) > 0:
        return False
    for sign in (1.0, -1.0):
        below = (sign * x[y <= 0]).max(initial=-np.inf)
        above = (sign * x[y >= 1]).min(initial=np.inf)
        at = sign * held[0] if len(held) else below if np.isfinite(below) else above
        if below <= at <= above:
            return True
    return False


def logit_residuals(x: _Floats, y: _Floats, there: _Truths) -> tuple[_Floats, _Truths]:
    """Fit B fractional logits of y (F,) on the rows of x (B, F), over the facts that are `there` (B, F).

    Newton's method, its steps held short so that it cannot leap away. Returns the sums of squared residuals and whether
    the iteration ended, each of shape (B,). A row in which x does not vary, or y is all 0 or all 1, gets its mean.
    """
    n = np.maximum(there.sum(1), 1)
    x, y = np.where(there, x, 0), np.where(there, y, 0)
    center = x.sum(1) / n
    x = np.where(there, x - center[:, None], 0)
    mean = y.sum(1) / n
    open_ = ((x**2).sum(1) > NEGLIGIBLE * n) & (mean > 0) & (mean < 1)
    safe = np.where(open_, mean, 0.5)
    a, b, ended = special.logit(safe), np.zeros(len(x)), ~open_
    for _ in range(_ROUNDS):
        fitted = np.where(there, special.expit(a[:, None] + b[:, None] * x), 0)
        weight, off = fitted * (1 - fitted), np.where(there, y - fitted, 0)
        h0, h1, h2 = weight.sum(1), (weight * x).sum(1), (weight * x**2).sum(1)
        g0, g1, det = off.sum(1), (off * x).sum(1), h0 * h2 - h1**2
        flat = det <= 1e-14 * h0 * np.maximum(h2, 1e-300)
        det = np.where(flat, 1, det)
        da, db = (h2 * g0 - h1 * g1) / det, (h0 * g1 - h1 * g0) / det
        moved = np.abs(np.where(there, da[:, None] + db[:, None] * x, 0)).max(1)
        share = np.where(ended | flat, 0, np.minimum(1, _STEP / np.maximum(moved, 1e-300)))
        a, b = a + share * da, b + share * db
        ended |= (moved < _SMALL) & ~flat
        if (ended | flat).all():
            break
    fitted = np.where(open_[:, None], special.expit(a[:, None] + b[:, None] * x), mean[:, None])
    return (np.where(there, y - fitted, 0) ** 2).sum(1), ended


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A slope with the ends of its interval, by the logit and by least squares; NaN with the reason where undefined."""

    ame: tuple[float, float, float] = (np.nan,) * 3
    linear: tuple[float, float, float] = (np.nan,) * 3
    note: str = ""


def marginal_effect(facts: Profiles, confidence: float) -> Slope:
    """The change of the score for a trace higher by 1, among the layers of a fact: its mean over rows, and by OLS."""
    there = facts.present > 0
    who, where = np.nonzero(there)
    y = np.column_stack([_scores(facts, layer) for layer in range(facts.n_layers)])[there]
    trace = facts.trace[there]
    mean = (np.bincount(who, trace) / np.bincount(who))[who]
    dummies = (where[:, None] == np.arange(facts.n_layers)).astype(np.float64)
    both = np.column_stack([trace, mean, dummies])
    if np.std(trace - mean) < NEGLIGIBLE or np.linalg.matrix_rank(both[:, [0, *range(2, both.shape[1])]]) < (
        both.shape[1] - 1
    ):
        return Slope(note="the trace does not vary within facts")
    if np.linalg.matrix_rank(both) < both.shape[1]:  # facts whose mean traces are alike
        both = np.delete(both, 1, axis=1)
    t = stats.t.ppf((1 + confidence) / 2, facts.n_facts - 1)

    def ends(value: float, variance: float) -> tuple[float, float, float]:
        reach = t * np.sqrt(max(variance, 0.0))
        return value / facts.scale, (value - reach) / facts.scale, (value + reach) / facts.scale

    line = sm.OLS(y, both).fit(cov_type="cluster", cov_kwds={"groups": who})
    linear = ends(float(line.params[0]), float(line.cov_params()[0, 0]))
    # A layer in which all scores are 0, or all 1, has no finite intercept, and no row in it moves.
    low, high = (np.bincount(where, y == end, minlength=facts.n_layers) for end in (0, 1))
    moves = ((low < there.sum(0)) & (high < there.sum(0)))[where]
    used = both[moves][:, both[moves].any(0)]
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of separation and no convergence, which is looked at below
            fit = sm.GLM(y[moves], used, family=sm.families.Binomial()).fit(
                maxiter=100, tol=1e-10, cov_type="cluster", cov_kwds={"groups": who[moves]}
            )
        covariance = np.asarray(fit.cov_params())
    except (np.linalg.LinAlgError, ValueError, PerfectSeparationError):
        return Slope(linear=linear, note="the slope is not defined")
    if not fit.converged or not np.isfinite(covariance).all() or np.abs(fit.params).max() > 1e3:
        return Slope(linear=linear, note="the slope did not converge")
    fitted = np.asarray(fit.fittedvalues)
    weight, slope = fitted * (1 - fitted), float(fit.params[0])
    gradient = slope * (weight * (1 - 2 * fitted)) @ used
    gradient[0] += weight.sum()
    gradient /= len(y)
    return Slope(ame=ends(slope * float(weight.sum()) / len(y), float(gradient @ covariance @ gradient)), linear=linear)


def _scores(facts: Profiles, layer: int) -> _Floats:
    """Scores of one layer, (F,); its mean where there is none."""
    return np.clip(facts.y[:, layer] + facts.layer_means[layer], 0, 1)


def _r2_trace(facts: Profiles) -> float:
    """R² of score ~ trace."""
    there = facts.present > 0
    y = np.column_stack([_scores(facts, layer) for layer in range(facts.n_layers)])[there]
    x = facts.trace[there]
    if np.ptp(x) == 0:
        return 0.0
    if is_separated(x, y):
        return np.nan
    fit = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit(maxiter=100)
    return 1 - float(((y - fit.fittedvalues) ** 2).sum()) / facts.total if fit.converged else np.nan


def _chance(facts: Profiles, design: Design, r2_layer: float) -> float:
    """What a trace dealt to facts at random adds to R², mean over dealings whose fits all ended; NaN with too few."""
    over_all = dealings(np.zeros_like(facts.relation), design.plan.permutations, design.plan.seed)[:_DEALINGS]
    left, ended = np.zeros(len(over_all)), np.ones(len(over_all), dtype=np.bool_)
    for layer in range(facts.n_layers):
        dealt = facts.trace[:, layer][over_all]
        there = ~np.isnan(dealt) & (facts.present[:, layer] > 0)
        squares, done = logit_residuals(dealt, _scores(facts, layer), there)
        # A fact that a dealing leaves without a trace stays at its layer's mean.
        left += squares + np.where(there, 0, facts.y[:, layer] ** 2).sum(1)
        ended &= done
    if ended.mean() < 0.5:
        return np.nan
    return float((1 - left[ended] / facts.total).mean()) - r2_layer
