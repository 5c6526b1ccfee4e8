"""Scores and traces laid out as facts by layers, and means over facts with their bootstrap intervals.

The bootstrap resamples whole facts. Its percentile interval is widened to Student's t (Hesterberg 2015, "What
teachers should know about the bootstrap", section 5.2).
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import factorial, prod

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pipeline.errors import UserError
from pipeline.seeds import derive

_Floats = NDArray[np.float64]

# A layer's trace is constant if its spread is below this share of the whole trace's: rounding, not signal.
NEGLIGIBLE = 1e-10


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How facts are resampled: bootstrap samples, dealings of traces, confidence in (0, 1), and params.seed."""

    samples: int
    permutations: int
    confidence: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Scores and trace of every fact at every layer, a row per fact; `present` marks the pairs that exist.

    x, y (trace and score) and present have shape (F, L); x and y are centred on their layer's mean and 0 where not
    present; each is exactly 0 in a layer where it varies by rounding only. x is in units of `scale`. trace is x
    before centring, (F, L), there also where a score is missing, NaN where it was not traced. layer_means (L,) are
    the means taken off y. relation (F,) numbers the facts' relations from 0.
    """

    x: _Floats
    y: _Floats
    present: _Floats
    trace: _Floats
    layer_means: _Floats
    relation: NDArray[np.int64]
    scale: float = 1.0

    negligible = NEGLIGIBLE

    @property
    def n_facts(self) -> int:
        """F, the number of facts."""
        return len(self.x)

    @property
    def n_layers(self) -> int:
        """L, the number of layers."""
        return self.x.shape[1]

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Facts of each relation, shape (R,)."""
        return np.bincount(self.relation)

    @property
    def n_relations(self) -> int:
        """R, the number of relations."""
        return len(self.sizes)

    @property
    def n_dealings(self) -> int:
        """In how many ways traces can be dealt to facts of the same relation."""
        return prod(factorial(int(size)) for size in self.sizes)

    @cached_property
    def grand_mean(self) -> float:
        """Mean score over all rows."""
        return float((self.present.sum(0) * self.layer_means).sum() / self.present.sum())

    @cached_property
    def total(self) -> float:
        """The score's sum of squares about its mean."""
        between = (self.present.sum(0) * (self.layer_means - self.grand_mean) ** 2).sum()
        return float(between + (self.y**2).sum())

    def by_relation(self, values: _Floats) -> _Floats:
        """Sums of `values` (F, ...) over the facts of each relation: (R, ...)."""
        sums = np.zeros((self.n_relations, *values.shape[1:]))
        np.add.at(sums, self.relation, values)
        return sums

    def variance_of_sum(self, values: _Floats) -> tuple[float, float]:
        """Variance of the sum of `values` (F,) over facts drawn within their relations, and its degrees of freedom.

        A fact that is alone in its relation is compared with all facts. The degrees of freedom are those of a
        chi-square that scatters as the estimate does by the values' fourth moment, from 1 to facts - relations.
        """
        size = self.sizes[self.relation]
        alone = size == 1
        center = np.where(alone, values.mean(), (self.by_relation(values) / self.sizes)[self.relation])
        left = np.where(alone, 1, size / np.maximum(size - 1, 1))
        squares = left * (values - center) ** 2
        whole, scatter = float(squares.sum()), float(((squares - squares.mean()) ** 2).sum())
        most = max(self.n_facts - self.n_relations, 1)
        return whole, float(np.clip(2 * whole**2 / scatter, 1, most)) if scatter > 0 else most


def standardized(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the trace at mean 0 and variance 1, and at its layer's mean where it varies there by rounding only.

    No R² depends on the trace's origin and scale; the condition of the design does. A constant trace becomes 0.
    """
    trace = rows["trace"]
    spread = np.std(trace)
    if not spread > NEGLIGIBLE * np.abs(trace).max():
        return rows.assign(trace=0.0)
    trace = (trace - trace.mean()) / spread
    by_layer = trace.groupby(rows["layer"])
    flat = by_layer.transform("std", ddof=0) < NEGLIGIBLE
    return rows.assign(trace=trace.where(~flat, by_layer.transform("mean")))


def one_row_a_layer(rows: pd.DataFrame) -> None:
    """Raise UserError where a fact has two rows for a layer."""
    twice = rows.duplicated(["fact_id", "layer"])
    if twice.any():
        row = rows[twice].iloc[0]
        raise UserError(
            f"data/scores.parquet: fact {row['fact_id']} has two rows for layer {row['layer']} of one "
            "regression; there must be one, so edit with one window at a time"
        )


def profiles(rows: pd.DataFrame) -> Profiles:
    """Lay out rows (fact_id, relation, layer, score, trace) as facts by layers, facts and layers in ascending order.

    Rows without a trace are left out; rows without a score lend their trace to dealings only. Facts and layers without
    a complete row are left out. Raises UserError where a fact has two rows for a layer.
    """
    one_row_a_layer(rows)
    whole = rows.dropna(subset=["score", "trace"])
    rows = rows[rows["trace"].notna() & rows["fact_id"].isin(whole["fact_id"]) & rows["layer"].isin(whole["layer"])]
    scale = float(np.std(rows["trace"])) or 1.0
    rows = standardized(rows)
    trace, y = (
        rows.pivot(index="fact_id", columns="layer", values=name).sort_index().sort_index(axis=1).to_numpy(float)
        for name in ("trace", "score")
    )
    relation = rows.drop_duplicates("fact_id").set_index("fact_id")["relation"].sort_index()
    present = ~np.isnan(y) & ~np.isnan(trace)
    n = present.sum(0)
    layer_means = np.where(present, y, 0).sum(0) / n
    x = np.where(present, trace - np.where(present, trace, 0).sum(0) / n, 0)
    x[:, np.sqrt((x**2).sum(0) / n) < NEGLIGIBLE] = 0
    y = np.where(present, y - layer_means, 0)
    y[:, np.sqrt((y**2).sum(0) / n) < NEGLIGIBLE * np.std(whole["score"])] = 0
    return Profiles(
        x=x,
        y=y,
        present=present.astype(np.float64),
        trace=trace,
        layer_means=layer_means,
        relation=np.unique(relation.to_numpy(str), return_inverse=True)[1].astype(np.int64),
        scale=scale,
    )


def r2_layer_and_diff(facts: Profiles) -> tuple[float, float]:
    """R² of score ~ C(layer), and what C(layer) * trace adds to it: one line per layer, so the layers' sums suffice."""
    xx, xy, yy = (facts.x**2).sum(0), (facts.x * facts.y).sum(0), (facts.y**2).sum(0)
    explained = np.where(xx > 0, xy**2, 0) / np.where(xx > 0, xx, 1)
    return 1 - float(yy.sum()) / facts.total, float(np.minimum(explained, yy).sum()) / facts.total


@lru_cache(maxsize=1024)
def expanded_levels(count: int, confidence: float) -> tuple[float, float]:
    """Quantile levels of a percentile interval over `count` >= 2 resampled units, widened to Student's t.

    A percentile interval uses the normal quantile and the biased variance; with a dozen units that costs
    coverage. The lower level is the normal probability of -t * sqrt(n / (n - 1)), with t the quantile of n -
    1 degrees of freedom.
    """
    t = stats.t.ppf((1 + confidence) / 2, count - 1)
    low = float(stats.norm.sf(t * np.sqrt(count / (count - 1))))
    return low, 1 - low


def resamples(count: int, plan: Resampling) -> _Floats:
    """How often each of `count` facts is in each resample of as many: shape (B, F), the same for the same plan."""
    rng = np.random.default_rng(derive(plan.seed, "fact bootstrap"))
    return rng.multinomial(count, np.full(count, 1 / count), size=plan.samples).astype(np.float64)


def resampled_means(values: _Floats, plan: Resampling) -> _Floats:
    """Means (B, L) of the columns of `values` (F, L) over each of B samples of its facts, all columns over the same.

    NaN in `values` is missing, and in the means where a sample has no fact with a value.
    """
    present = ~np.isnan(values)
    weights = resamples(len(values), plan)
    drawn = weights @ present
    return np.where(drawn > 0, weights @ np.where(present, values, 0) / np.maximum(drawn, 1), np.nan)


def interval(resampled: _Floats, count: int, confidence: float) -> tuple[float, float]:
    """Expanded percentile interval of a number over `count` >= 2 facts, from its values in the samples (B,).

    Samples in which it is NaN are left out; NaN where it is in all.
    """
    held = resampled[~np.isnan(resampled)]
    if not len(held):
        return float("nan"), float("nan")
    low, high = np.quantile(held, expanded_levels(count, confidence))
    return float(low), float(high)


def with_ends(name: str, mean: float, low: float, high: float) -> dict[str, float]:
    """A mean and its interval under the names of their columns: `name`, `name`_low and `name`_high."""
    return {name: float(mean), f"{name}_low": float(low), f"{name}_high": float(high)}


def mean_interval(values: _Floats, plan: Resampling) -> tuple[_Floats, _Floats, _Floats, NDArray[np.int64]]:
    """Mean over facts in each column, and its fact-resampled bootstrap interval (expanded percentile).

    Parameters
    ----------
    values : shape (F, L), NaN where missing.
    plan : its samples, confidence and seed.

    Returns
    -------
    Mean, low, high and the number of facts, each of shape (L,). The interval is NaN in columns with fewer than two
    facts, the mean in columns with none.
    """
    present = ~np.isnan(values)
    n = present.sum(0)
    filled = np.where(present, values, 0)
    mean = np.where(n > 0, filled.sum(0) / np.maximum(n, 1), np.nan)
    low, high = np.full(len(n), np.nan), np.full(len(n), np.nan)
    if len(values) < 2:
        return mean, low, high, n
    means = resampled_means(values, plan)
    for column in np.flatnonzero(n >= 2):
        low[column], high[column] = interval(means[:, column], int(n[column]), plan.confidence)
    return mean, low, high, n
