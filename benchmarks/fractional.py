"""How often the intervals of fractional.csv hold the slope, on made-up tables of scores that pile up at their ends.

    python -m benchmarks.fractional [TABLES]

prints the table of docs/statistics.md. Facts that trace high are easy to edit at all layers (which is no slope within
a fact), scores of a fact have noise in common, and the trace is a bump at a place of the fact's own. The truth is the
mean over tables of 2,000 facts.
"""

import sys

import numpy as np
import pandas as pd
from scipy.special import expit

from pipeline.analysis.fractional import marginal_effect
from pipeline.analysis.profiles import profiles

LAYERS = 12
WORLDS = {"nothing": (0.0, 1.0), "a slope": (1.5, 1.0), "a slope, half of scores at 1": (1.5, 4.0)}
FACTS = (40, 10, 100)
_END = 0.002  # scores this close to 0 or 1 are just that


def table(rng: np.random.Generator, facts: int, effect: float, level: float) -> pd.DataFrame:
    """Rows as a regression takes them. effect: in logits for a trace of 1; level: of the scores, in logits."""
    layer = np.arange(LAYERS)
    height, place = rng.beta(2, 3, (facts, 1)), rng.uniform(0.2, 0.6, (facts, 1)) * LAYERS
    trace = height * np.exp(-(((layer - place) / (0.2 * LAYERS)) ** 2)) + rng.normal(0, 0.03, (facts, LAYERS))
    ease = 3 * (height - 0.4) + rng.normal(0, 0.8, (facts, 1))
    logit = level + 3 * np.cos(3 * layer / LAYERS) + ease + effect * trace + rng.normal(0, 0.7, (facts, LAYERS))
    score = expit(logit)
    score = np.where(score < _END, 0, np.where(score > 1 - _END, 1, score))
    fact, at = np.indices(score.shape)
    return pd.DataFrame(
        {
            "fact_id": [f"{i:05d}" for i in fact.ravel()], "relation": "one", "layer": at.ravel(), "acts": True,
            "score": score.ravel(), "trace": trace.ravel(),
        }
    )  # fmt: skip


def main(tables: int) -> None:
    """Print a row for each world and number of facts."""
    print(
        "| what there is | facts | scores >= 0.99 | slope | logit, mean | interval | linear, mean | interval | empty |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (effect, level) in WORLDS.items():
        whole = [table(np.random.default_rng(10_000 + i), 2000, effect, level) for i in range(4)]
        fits = [marginal_effect(profiles(one), 0.95) for one in whole]
        truth, line = np.mean([fit.ame[0] for fit in fits]), np.mean([fit.linear[0] for fit in fits])
        share = np.mean([(one["score"] >= 0.99).mean() for one in whole])
        for facts in FACTS:
            found = [
                marginal_effect(profiles(table(np.random.default_rng(i), facts, effect, level)), 0.95)
                for i in range(tables)
            ]
            done = [fit for fit in found if not fit.note]
            held = [100 * np.mean([fit.ame[1] <= truth <= fit.ame[2] for fit in done])]
            held += [100 * np.mean([fit.linear[1] <= line <= fit.linear[2] for fit in done])]
            means = [np.mean([fit.ame[0] for fit in done]), np.mean([fit.linear[0] for fit in done])]
            print(
                f"| {name} | {facts} | {share:.0%} | {truth:.3f} | {means[0]:.3f} | {held[0]:.1f} | {means[1]:.3f} | "
                f"{held[1]:.1f} | {len(found) - len(done)} |",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
