"""Made-up populations of facts for `benchmarks.simulate`, with scores bounded and piled at both ends.

Early layers' scores pile up at 1 and late ones' at 0; traces are skewed, within [0, 1] and highest at some layers.
Half of what is left of either (three quarters where facts' shared parts are joined) is shared by all layers of a
fact. With relation effects, a fifth of it (intra-relation correlation 0.2) is shared by the facts of a relation: half
of that by all layers, half a profile over layers.

What joins trace and score (`kind`): "layer" adds a multiple of the trace to the score, fact by fact and layer by
layer; "fact" joins the facts' shared parts alone, so that facts which trace high edit well everywhere and no layer of
a fact is better for its trace; "height" is the same with traces that a fact's part multiplies, so that high ones
differ most where traces peak.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.profiles import Profiles

_Floats = NDArray[np.float64]

# Facts of each relation: as in small runs, in a run of 100 facts, and in CounterFact's 34 relations.
SIZES = {
    10: (3, 3, 2, 2),
    12: (3, 3, 3, 3),
    40: (10, 8, 7, 6, 5, 4),
    100: (24, 20, 16, 14, 12, 8, 6),
    652: (*(40,) * 6, *(25,) * 10, *(15,) * 6, *(9,) * 6, *(3,) * 6),
}
LAYERS = {10: 30, 12: 30, 40: 30, 100: 30, 652: 9}


@dataclass(frozen=True, kw_only=True)
class World:
    """A population of relations and facts: `strength` is what joins trace and score, by `kind`."""

    layers: int
    icc: float
    kind: str = "layer"
    strength: float = 0.0

    @cached_property
    def level(self) -> _Floats:
        """Mean of the score before it is cut to [0, 1], by layer."""
        return 0.5 - 0.65 * np.tanh(np.linspace(-2, 3, self.layers))

    @cached_property
    def bump(self) -> _Floats:
        """Shape of the mean trace over layers."""
        return np.exp(-((np.linspace(-1.2, 2.5, self.layers)) ** 2))

    def relation_effects(self, rng: np.random.Generator, count: int) -> _Floats:
        """Effects of `count` relations on trace and score, (2, count, 1, L), of variance 1."""
        shared, own = rng.normal(size=(2, count, 1, 1)), rng.normal(size=(2, count, 1, self.layers))
        return np.sqrt(0.5) * (shared + own)

    def draw(self, rng: np.random.Generator, effects: _Floats, facts: int) -> tuple[_Floats, _Floats]:
        """Trace and score of `facts` facts of each relation, (relations, facts, L)."""
        relations = effects.shape[1]
        shared, own = rng.normal(size=(2, relations, facts, 1)), rng.normal(size=(2, relations, facts, self.layers))
        if self.kind != "layer":
            shared[1] = self.strength * shared[0] + np.sqrt(1 - self.strength**2) * shared[1]
        part = 0.5 if self.kind == "layer" else 0.75
        latent = np.sqrt(self.icc) * effects + np.sqrt(1 - self.icc) * (
            np.sqrt(part) * shared + np.sqrt(1 - part) * own
        )
        height = np.minimum(0.15 * np.exp(0.8 * latent[0]), 1)
        trace = height * (0.3 + 0.7 * self.bump) if self.kind == "height" else 0.15 * self.bump + 0.85 * height
        raised = self.strength * (height - 0.2) if self.kind == "layer" else 0.0
        return trace, np.clip(self.level + 0.3 * latent[1] + raised, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of each relation of a pool: means and products by layer (P, L), and within fact and relation (P,)."""

    x: _Floats
    y: _Floats
    xx: _Floats
    xy: _Floats
    yy: _Floats
    within_xx: _Floats
    within_xy: _Floats

    def gain(self, weights: _Floats) -> float:
        """R² that C(layer) * trace adds to C(layer), in relations mixed by `weights` (P,) that sum to 1."""
        x, y, xx, xy, yy = (weights @ part for part in (self.x, self.y, self.xx, self.xy, self.yy))
        whole = yy.sum() - y.sum() ** 2 / len(y)
        return float(((xy - x * y) ** 2 / (xx - x**2)).sum() / whole)

    def slope(self, weights: _Floats) -> float:
        """Slope within fact and relation."""
        return float((weights @ self.within_xy) / (weights @ self.within_xx))


def moments(world: World, effects: _Floats, facts: int, rng: np.random.Generator) -> Moments:
    """Moments of the relations with these effects, from `facts` facts of each."""
    parts = []
    for r in range(effects.shape[1]):
        x, y = (values[0] for values in world.draw(rng, effects[:, r : r + 1], facts))
        dx, dy = x - x.mean(0), y - y.mean(0)
        dx, dy = dx - dx.mean(1, keepdims=True), dy - dy.mean(1, keepdims=True)
        sums = (dx**2).sum(1).mean(), (dx * dy).sum(1).mean()
        parts.append((x.mean(0), y.mean(0), (x**2).mean(0), (x * y).mean(0), (y**2).mean(0), *sums))
    x, y, xx, xy, yy, wxx, wxy = (np.array(part) for part in zip(*parts, strict=True))
    return Moments(x=x, y=y, xx=xx, xy=xy, yy=yy, within_xx=wxx, within_xy=wxy)


def calibrated(layers: int, icc: float, kind: str, gain: float) -> World:
    """The world of this kind whose gain over all relations is `gain`."""
    low, high = 0.0, 3.0 if kind == "layer" else 1.0
    for _ in range(11 if gain else 0):
        middle = (low + high) / 2
        world = World(layers=layers, icc=icc, kind=kind, strength=middle)
        rng = np.random.default_rng(1)
        effects = world.relation_effects(rng, 200)
        found = moments(world, effects, 200, rng).gain(np.full(200, 1 / 200))
        low, high = (middle, high) if found < gain else (low, middle)
    return World(layers=layers, icc=icc, kind=kind, strength=(low + high) / 2 if gain else 0.0)


def table(x: _Floats, y: _Floats, relation: NDArray[np.int64]) -> Profiles:
    """Trace and score (F, L) as `pipeline.analysis.profiles` lays out a complete table."""
    return Profiles(
        x=x - x.mean(0),
        y=y - y.mean(0),
        present=np.ones_like(x),
        trace=x,
        layer_means=y.mean(0),
        relation=relation,
    )
