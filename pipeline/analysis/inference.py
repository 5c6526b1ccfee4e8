"""What facts allow to say of the gain: dealt traces, permutation tests, and the interval of the gain over chance.

The target of every number here is the population of facts of the run's own relations (the relations are chosen in
params.yaml, not sampled). There, the gain is what C(layer) * trace explains beyond C(layer): the sum over layers of
Cov(trace, score)² / Var(trace), over the variance of the score.

Dealing. Whole trace profiles are dealt to other facts, which keeps every correlation within a trace and within a
score and breaks only what joins the two. Dealt within relations, it gives a test that is exact whatever facts of one
relation have in common (Hemerik and Goeman 2018, "Exact testing with random permutations": p = (1 + dealings at
least as good) / (1 + dealings)). Dealt over all facts, it gives the distribution of the gain where there is none.

Interval (`gain_interval`). The gain is a squared length |z|² of the layers' correlations z, so near 0 its
distribution is that of noise squared (skewed, variance V) and further off close to normal, its variance growing as V
+ v * gain. A bootstrap percentile interval misses the first, and a clipped one says nothing at 0. Here the test is
inverted: a gain g is in the interval if the observed gain is between the tail quantiles of (gain of dealt traces -
their mean) + sqrt(g * v) * t + g, less what chance no longer adds at g; v is four times the jackknife variance of the
root of r2_diff (facts within relations), t has the degrees of freedom of that variance, which heavy tails lower below
facts - relations. Where g <= 0 the second term is absent: the interval may reach below 0, and lies above 0 just where
the one-sided permutation test over all facts rejects.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.analysis.profiles import Profiles, Resampling
from pipeline.seeds import derive

_Floats = NDArray[np.float64]
_Orders = NDArray[np.int64]

MIN_DEALINGS = 100  # with fewer ways to deal traces within relations, no p-value near 5 % means anything

# Of the bound's nominal tail: with all of it, it holds in 92.5 % of some simulated runs of 100 facts, below 93 %.
BOUND_SHARE = 0.9
# Of the degrees of freedom that the fourth moment gives, which a sample understates: with all of them, intervals of
# a gain of 0.01 hold it in 91 to 94 % of runs at 40 and 100 facts.
GAIN_FREEDOM = 0.5

_TIE = 1e-9  # a dealing that comes this close to the sample's own value counts as one that reaches it


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The gain over chance: its interval, its upper one-sided bound, and the permutation tests (NaN: undefined)."""

    low: float = np.nan
    high: float = np.nan
    bound: float = np.nan
    pvalue: float = np.nan
    pvalue_all: float = np.nan


def dealings(groups: NDArray[np.int64], count: int, seed: int) -> _Orders:
    """`count` random orders of facts, each fact replaced by one of its own group; shape (count, F).

    groups: an integer for each fact, shape (F,); all 0 for dealings over all facts.
    """
    return _dealings(tuple(groups.tolist()), count, seed)


@lru_cache(maxsize=8)
def _dealings(groups: tuple[int, ...], count: int, seed: int) -> _Orders:
    rng = np.random.default_rng(derive(seed, "dealt traces"))
    keys = rng.random((count, len(groups))) + np.array(groups)
    orders = np.empty(keys.shape, dtype=np.int64)
    orders[:, np.argsort(groups, kind="stable")] = np.argsort(keys, axis=1)
    orders.setflags(write=False)
    return orders


def dealt_r2_diff(facts: Profiles, orders: _Orders) -> _Floats:
    """What the traces add to the layer's R² when fact f gets the profile of fact orders[b, f]; shape (B,)."""
    explained = np.zeros(len(orders))
    complete = bool(facts.present.all())
    for layer in range(facts.n_layers):
        y = facts.y[:, layer]
        if complete:
            x = facts.x[:, layer]
            xx = x @ x
            if xx > 0:
                explained += (x[orders] @ y) ** 2 / xx
            continue
        dealt = facts.trace[:, layer][orders]  # (B, F)
        there = ~np.isnan(dealt) & (facts.present[:, layer] > 0)
        dealt = np.where(there, dealt, 0)
        n = np.maximum(there.sum(1), 1)
        x_sum, y_sum = dealt.sum(1), there @ y
        xx = (dealt**2).sum(1) - x_sum**2 / n
        xy = dealt @ y - x_sum * y_sum / n
        varies = xx > facts.negligible * n
        explained += np.where(varies, xy**2, 0) / np.where(varies, xx, 1)
    return explained / facts.total


def permutation_pvalue(observed: float, dealt: _Floats) -> float:
    """Share of dealings, the sample's own counted in, in which the traces add at least `observed`."""
    return float((1 + (dealt >= observed * (1 - _TIE)).sum()) / (1 + len(dealt)))


def gain_inference(facts: Profiles, r2_diff: float, chance: float, plan: Resampling) -> Gain:
    """Interval, bound and permutation tests of the gain r2_diff - chance. NaN where the trace or score never varies."""
    if not (facts.x.any() and facts.y.any()):
        return Gain()
    within = dealings(facts.relation, plan.permutations, plan.seed)
    over_all = dealings(np.zeros_like(facts.relation), plan.permutations, plan.seed)
    dealt = dealt_r2_diff(facts, over_all)
    enough = facts.n_dealings >= MIN_DEALINGS
    pvalue = permutation_pvalue(r2_diff, dealt_r2_diff(facts, within)) if enough else np.nan
    variance, freedom = root_variance(facts, common=False)
    spread = Spread(
        noise=dealt - dealt.mean(),
        rate=4 * variance,
        chance=chance,
        room=float((facts.y**2).sum()) / facts.total,
        freedom=freedom * GAIN_FREEDOM,
        seed=plan.seed,
    )
    tail = (1 - plan.confidence) / 2
    ends = [spread.invert(r2_diff - chance, level) for level in (1 - tail, tail, 2 * tail * BOUND_SHARE)]
    return Gain(low=ends[0], high=ends[1], bound=ends[2], pvalue=pvalue, pvalue_all=permutation_pvalue(r2_diff, dealt))


def root_variance(facts: Profiles, common: bool) -> tuple[float, float]:
    """Jackknife variance, by facts within relations, of the square root of what the trace adds to R², and its
    degrees of freedom.

    common: with one slope for all layers (the root then has the slope's sign), else with one in each layer. A gain g
    has about 4 g times this variance, beside what it has at 0.
    """
    count = facts.present.sum(0) - facts.present  # (F, L): rows left at each layer
    # With a fact gone, sums about the mean of the others fall by its own product times n / (n - 1).
    more = np.where(facts.present > 0, (count + 1) / np.maximum(count, 1), 0)
    xx = (facts.x**2).sum(0) - facts.x**2 * more
    xy = (facts.x * facts.y).sum(0) - facts.x * facts.y * more
    floor = facts.negligible * (facts.x**2).sum(0)
    if common:
        xx, xy, floor = xx.sum(1, keepdims=True), xy.sum(1, keepdims=True), floor.sum(keepdims=True)
    varies = xx > floor
    explained = (np.where(varies, xy**2, 0) / np.where(varies, xx, 1)).sum(1)
    score = facts.present * (facts.y + facts.layer_means - facts.grand_mean)
    rows = facts.present.sum() - facts.present.sum(1)
    total = facts.total - (score**2).sum(1) - score.sum(1) ** 2 / rows
    sign = np.sign(xy[:, 0]) if common else 1.0
    return facts.variance_of_sum(sign * np.sqrt(explained / total))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How an estimated gain, its chance taken off, scatters about a true gain g.

    noise: of dealt traces, (B,), mean 0. rate: variance that each unit of g brings. chance and room: what chance adds
    to R² at g = 0, and the R² that the layer leaves; with a share s = g / room explained, chance adds (1 - s)² times
    as much. freedom: degrees of freedom.
    """

    noise: _Floats
    rate: float
    chance: float
    room: float
    freedom: float
    seed: int

    def quantile(self, gains: _Floats, level: float) -> _Floats:
        """The `level` quantile of estimates where the gain is each of `gains` >= 0, (G,)."""
        share = np.minimum(gains / self.room, 1.0)
        scores = _scores(len(self.noise), max(round(self.freedom, 1), 1.0), self.seed)
        scattered = self.noise + np.sqrt(gains * self.rate)[:, None] * scores
        place = round(level * (len(self.noise) - 1))
        return gains - self.chance * share * (2 - share) + np.partition(scattered, place, axis=1)[:, place]

    def invert(self, estimate: float, level: float) -> float:
        """The gain of which `estimate` is the `level` quantile; the largest, where there are several."""
        low, high = 0.0, self.room
        flat = estimate - float(self.quantile(np.zeros(1), level)[0])
        if flat <= 0:
            return flat
        for power in (2, 1, 1):  # ever finer grids; the first is finest near 0
            gains = low + (high - low) * np.linspace(0, 1, 41) ** power
            below = np.flatnonzero(self.quantile(gains, level) < estimate)
            if not len(below) or below[-1] == len(gains) - 1:
                return float(gains[below[-1]] if len(below) else low)
            low, high = float(gains[below[-1]]), float(gains[below[-1] + 1])
        return (low + high) / 2


@lru_cache(maxsize=64)
def _scores(count: int, freedom: float, seed: int) -> _Floats:
    """Student's t at evenly spaced levels, in random order."""
    levels = (np.arange(count) + 0.5) / count
    return np.random.default_rng(derive(seed, "normal scores")).permutation(stats.t.ppf(levels, freedom))
