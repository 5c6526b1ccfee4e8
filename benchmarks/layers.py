"""How often the intervals of the layer question hold what they are of: `python -m benchmarks.layers`.

Made-up facts with scores by layer that are cut to [0, 1] and pile up at 1 in early layers, and traces. What an interval
is to hold is the mean of the same number over all tables made in one way: what the choice scores on average with so
many facts. docs/statistics.md has the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd

from pipeline.analysis.layers import answer, lay_out
from pipeline.analysis.profiles import Resampling, mean_interval
from pipeline.progress import say

WAYS = {
    "noise": "the trace is noise",
    "bump": "the trace has its bump at early layers, which edit well, and says nothing of its own fact",
    "alike": "the same, and facts of a relation have alike scores and traces",
    "own": "the trace says which layers of its own fact edit well",
    "flat": "all layers edit alike, and the trace is noise",
}


def made(
    way: str, n_facts: int, n_layers: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series[str]]:
    """Scores and traces (facts by layers), and the relation of each fact, of six; `way` is one of WAYS."""
    place = np.arange(n_layers) / n_layers
    relation = rng.integers(0, 6, n_facts)
    shared = np.linspace(-0.15, 0.15, 6)[relation] if way == "alike" else np.zeros(n_facts)
    end = (rng.normal(0.6, 0.15, n_facts) + shared)[:, None]
    noise = rng.normal(0, 0.15, (n_facts, n_layers)) + rng.normal(0, 0.15, (n_facts, 1))
    score = np.clip(1 / (1 + np.exp((place - end) * 12)) + noise, 0, 1)
    if way == "flat":
        score = np.clip(0.5 + 2 * noise, 0, 1)
    middle = (rng.uniform(0.2, 0.5, n_facts) + shared)[:, None]
    trace = rng.beta(2, 3, (n_facts, 1)) * np.exp(-(((place - middle) / 0.2) ** 2))
    trace = trace + rng.normal(0, 0.02, (n_facts, n_layers))
    if way in ("noise", "flat"):
        trace = rng.uniform(size=(n_facts, n_layers))
    if way == "own":
        trace = trace + score
    names = [f"f{i:04d}" for i in range(n_facts)]
    table, traced = (pd.DataFrame(values, index=names) for values in (score, trace))
    return table, traced, pd.Series(relation.astype(str), index=names)


def answers(way: str, n_facts: int, n_layers: int, tables: int, plan: Resampling, seed: int = 0) -> pd.DataFrame:
    """The rows of `pipeline.analysis.layers.answer` for as many made-up tables; index (table, choice).

    plain_low and plain_high are an interval of the mean of `fixed` that takes its layers for given.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(tables):
        grid = lay_out(*made(way, n_facts, n_layers, rng))
        assert grid is not None
        rows = pd.DataFrame(answer(grid, plan)).set_index("choice")
        at_fixed = grid.score[np.arange(n_facts), grid.fixed][:, None]
        rows.loc["fixed", ["plain_low", "plain_high"]] = np.ravel(mean_interval(at_fixed, plan)[1:3])
        found.append(rows)
    return pd.concat(found, keys=range(tables), names=["table"])


def held(rows: pd.DataFrame, name: str, prefix: str = "") -> float:
    """Share of the tables whose interval of `name` (mean or regret) of one choice holds the mean over all tables.

    The interval is in the columns `prefix`low and `prefix`high.
    """
    low, high = f"{prefix}low", f"{prefix}high"
    truth = rows[name].mean()
    return float(((rows[low] <= truth) & (truth <= rows[high])).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument("--facts", type=int, default=40)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tables", type=int, default=500)
    asked = parser.parse_args(arguments)
    plan = Resampling(samples=500, permutations=199, confidence=0.95, seed=0)
    for way in WAYS:
        rows = answers(way, asked.facts, asked.layers, asked.tables, plan)
        by = {choice: rows.xs(choice, level="choice") for choice in ("traced", "fixed", "best", "random", "dealt")}
        means = [f"{by[choice]['mean'].mean():.3f}" for choice in by]
        shares = [held(by[choice], "mean") for choice in ("traced", "fixed", "best", "random")]
        shares += [held(by["fixed"], "mean", "plain_")]
        shares += [held(by[choice], "regret", "regret_") for choice in ("fixed", "best", "random")]
        shares += [float((by["dealt"]["permutation_pvalue"] <= 0.05).mean())]
        cells = [str(asked.facts), way, *means, *(f"{100 * share:.1f}" for share in shares)]
        say(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
