"""The within-fact slope, and what the trace is worth on facts that the fit has not seen.

Within fact (`within_slope`): score ~ C(relation):C(layer) + C(fact) + trace. C(fact) takes out that facts which trace
high edit well everywhere; the layers' means are those of the fact's own relation, as facts of one relation share
profiles of both trace and score, which with one mean a layer made a test by fact reject a true null in 14 % of runs.
The error is clustered by fact, corrected as CR2 of Bell and McCaffrey 2002 with their degrees of freedom (Pustejovsky
and Tipton 2018, "Small-sample methods for cluster-robust variance estimation", equations 6 and 11).

Held out (`held_out`): facts are split into folds; layer means and, for the second model, one slope of the trace
within layers are fitted on the other folds. One slope, not one a layer: thirty slopes of a dozen facts predict
chance. So slopes that differ between layers and average to zero are not seen here; r2_diff sees them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.analysis.inference import Spread, dealings, root_variance
from pipeline.analysis.profiles import Profiles, Resampling
from pipeline.seeds import derive

_Floats = NDArray[np.float64]

_TIGHT = 1e-12  # relative change at which the removal of means has converged


@dataclass(frozen=True, kw_only=True)
class Within:
    """Slope of the score on the trace (score per unit of trace), interval, two-sided p-value (NaN: undefined)."""

    slope: float = np.nan
    low: float = np.nan
    high: float = np.nan
    pvalue: float = np.nan


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """R² on held-out facts of the layer, of layer and trace, their difference and its interval (NaN: undefined)."""

    r2_layer: float = np.nan
    r2_both: float = np.nan
    gain: float = np.nan
    low: float = np.nan
    high: float = np.nan


@dataclass(frozen=True, kw_only=True)
class Fit:
    """score ~ C(layer) + trace on training facts: means of centred trace and score (L,), mean score, common slope."""

    x_mean: _Floats
    y_mean: _Floats
    center: float
    slope: float


def within_relation_and_fact(facts: Profiles, values: _Floats) -> _Floats:
    """Residuals (F, L) of `values` on C(relation):C(layer) + C(fact), over the rows present.

    Means are taken off in turn until nothing changes; where no row is missing, once is enough.
    """
    n_fact = np.maximum(facts.present.sum(1, keepdims=True), 1)
    n_cell = np.maximum(facts.by_relation(facts.present), 1)
    left = values * facts.present
    for _ in range(10_000):
        before = left
        left = (left - (facts.by_relation(left) / n_cell)[facts.relation]) * facts.present
        left = (left - left.sum(1, keepdims=True) / n_fact) * facts.present
        if np.abs(left - before).max() <= _TIGHT * max(np.abs(values).max(), 1e-300):
            break
    return left


def within_slope(facts: Profiles, confidence: float) -> Within:
    """Slope of score ~ C(relation):C(layer) + C(fact) + trace, in units of score per unit of trace.

    Facts that are alone in their relation say nothing here. NaN where fewer than two facts have relatives, or the
    trace does not vary within them.
    """
    x, y = (within_relation_and_fact(facts, values) for values in (facts.x, facts.y))
    share = (x**2).sum(1)
    whole = share.sum()
    if not whole > facts.negligible * (facts.x**2).sum() or whole == 0:
        return Within()
    slope = float((x * y).sum() / whole)
    kept = 1 - 1 / facts.sizes[facts.relation] - share / whole  # what a fact's own rows leave of its residual
    used = (share > facts.negligible * whole) & (kept > 1e-6)
    if used.sum() < 2:
        return Within(slope=slope / facts.scale)
    residual = ((y - slope * x) * x).sum(1)[used] / np.sqrt(kept[used])
    error = float(np.sqrt((residual**2).sum()) / whole)
    if not error > 1e-12 * max(abs(slope), np.abs(y).max() / np.sqrt(whole)):
        return Within(slope=slope / facts.scale)
    freedom = _degrees_of_freedom(facts, x[used], kept[used], used)
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    pvalue = float(2 * stats.t.sf(abs(slope) / error, freedom))
    slope, reach = slope / facts.scale, reach / facts.scale
    return Within(slope=slope, low=slope - reach, high=slope + reach, pvalue=pvalue)


def _degrees_of_freedom(facts: Profiles, x: _Floats, kept: _Floats, used: NDArray[np.bool_]) -> float:
    """Satterthwaite's degrees of freedom of the CR2 variance, under independent errors; x (U, L), kept (U,)."""
    share = (x**2).sum(1)
    relation = facts.relation[used]
    shared = (relation[:, None] == relation) / facts.sizes[relation]
    outer = -shared * (x @ x.T) - np.outer(share, share) / share.sum()
    outer[np.diag_indices(len(x))] += share
    outer /= np.sqrt(np.outer(kept, kept))
    return float(np.trace(outer) ** 2 / (outer**2).sum())


def folds(relation: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """A fold for each fact, shape (F,): facts in random order within relation, dealt to the folds in turn."""
    rng = np.random.default_rng(derive(seed, "folds"))
    order = np.lexsort((rng.random(len(relation)), relation))
    fold = np.empty(len(relation), dtype=np.int64)
    fold[order] = np.arange(len(relation)) % count
    return fold


def fold_fits(facts: Profiles, count: int, seed: int) -> Iterator[tuple[NDArray[np.bool_], Fit]]:
    """For each of at most `count` folds: which facts are in it (F,), and what the others say."""
    count = min(count, facts.n_facts)
    fold = folds(facts.relation, count, seed)
    for k in range(count):
        test = fold == k
        train = facts.present[~test]
        n = train.sum(0)
        x_mean, y_mean = (values[~test].sum(0) / np.maximum(n, 1) for values in (facts.x, facts.y))
        x, y = (facts.x[~test] - x_mean) * train, (facts.y[~test] - y_mean) * train
        xx = float((x**2).sum())
        yield (
            test,
            Fit(
                x_mean=x_mean,
                y_mean=y_mean,
                center=float((n * (y_mean + facts.layer_means)).sum() / n.sum()),
                slope=float((x * y).sum()) / xx if xx > 0 else 0.0,
            ),
        )


def dealt_cv_gain(facts: Profiles, fold: NDArray[np.int64], orders: NDArray[np.int64]) -> _Floats:
    """R² that the trace adds on held-out facts when fact f has the profile of fact orders[b, f]; shape (B,).

    Sums by fold and layer suffice: the slope and means of a training set are those of all folds less one.
    """
    chunk = max(1, int(4e6) // facts.x.size)
    parts = [_cv_gain(facts, fold, orders[start : start + chunk]) for start in range(0, len(orders), chunk)]
    return np.concatenate(parts)


def _cv_gain(facts: Profiles, fold: NDArray[np.int64], orders: NDArray[np.int64]) -> _Floats:
    belongs = (fold == np.arange(fold.max() + 1)[:, None]).astype(float)  # (K, F)
    x = facts.trace[orders]  # (b, F, L)
    there = facts.present
    if np.isnan(x).any() or not there.all():
        there = there * ~np.isnan(x)
        x = np.where(there > 0, x, 0)
    y = facts.y * there
    n, sx, sy = belongs @ there, belongs @ x, belongs @ y  # (b, K, L) or (K, L)
    xy = np.einsum("bfl,fl->bf", x, facts.y) @ belongs.T  # (b, K)
    xx = np.einsum("bfl,bfl->bf", x, x) @ belongs.T
    train_n = n.sum(-2, keepdims=True) - n
    seen = train_n > 0
    n_inv = 1 / np.maximum(train_n, 1)
    train_sx, train_sy = sx.sum(-2, keepdims=True) - sx, sy.sum(-2, keepdims=True) - sy
    train_xx = xx.sum(1, keepdims=True) - xx - (train_sx**2 * n_inv).sum(-1)
    train_xy = xy.sum(1, keepdims=True) - xy - (train_sx * train_sy * n_inv).sum(-1)
    varies = train_xx > facts.negligible * np.maximum(xx.sum(1, keepdims=True), 1e-300)
    slope = np.where(varies, train_xy, 0) / np.where(varies, train_xx, 1)
    x_mean, y_mean = train_sx * n_inv, train_sy * n_inv
    test_xy = xy - ((x_mean * sy + y_mean * sx - n * x_mean * y_mean) * seen).sum(-1)
    test_xx = xx - ((2 * x_mean * sx - n * x_mean**2) * seen).sum(-1)
    return (2 * slope * test_xy - slope**2 * test_xx).sum(1)


def held_out(facts: Profiles, count: int, plan: Resampling) -> HeldOut:
    """Predict each fold's facts from the other folds', by layer and by layer and trace.

    R² is 1 - squared error / squared distance to the training facts' mean, over all facts.

    The interval is for the gain to expect on average over samples of this size, by the same inversion as the gain's:
    traces dealt to facts have a mean held-out gain a little below 0, the price of fitting a slope.
    """
    total = layer = 0.0
    better = 0.0
    for test, fit in fold_fits(facts, count, plan.seed):
        # A layer that no training fact has predicts nothing.
        seen = facts.present[test] * (facts.present[~test].sum(0) > 0)
        left = (facts.y[test] - fit.y_mean) * seen
        total += float((((facts.y[test] + facts.layer_means - fit.center) * seen) ** 2).sum())
        layer += float((left**2).sum())
        better += float((left**2 - (left - fit.slope * (facts.x[test] - fit.x_mean) * seen) ** 2).sum())
    if not total > 0:
        return HeldOut()
    gain = better / total
    numbers = HeldOut(r2_layer=1 - layer / total, r2_both=1 - (layer - better) / total, gain=gain)
    if not (facts.x.any() and facts.y.any()):
        return numbers
    fold = folds(facts.relation, min(count, facts.n_facts), plan.seed)
    orders = dealings(np.zeros_like(facts.relation), plan.permutations, plan.seed)
    dealt = dealt_cv_gain(facts, fold, orders) / total
    price = float(dealt.mean())
    variance, freedom = root_variance(facts, common=True)
    spread = Spread(
        noise=dealt - price,
        rate=4 * variance,
        chance=0.0,
        room=1.0,
        freedom=freedom,
        seed=plan.seed,
    )
    tail = (1 - plan.confidence) / 2
    low, high = (price + spread.invert(gain - price, level) for level in (1 - tail, tail))
    return replace(numbers, low=low, high=high)
