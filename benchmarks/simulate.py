"""Size, power and coverage of every test and interval of the report, on made-up facts: `make simulate`.

Results are kept by situation in benchmarks/simulation.json, so that a run goes on where it was stopped;
docs/statistics.md holds the table, written by --write. Truths come from populations of 3,000 facts a relation and are
those of the run's own relations; that of the held-out gain is its mean over the runs on the same relations.
"""

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.worlds import LAYERS, SIZES, Moments, World, calibrated, moments, table
from pipeline.inference import gain_inference
from pipeline.profiles import Profiles, Resampling, mean_interval, r2_layer_and_diff
from pipeline.slopes import fold_fits, held_out, within_slope

RESULTS = Path(__file__).with_name("simulation.json")
PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
MARKS = ("<!-- simulation -->\n", "<!-- end of simulation -->\n")
FOLDS = 10
SETS = 8  # different sets of relations in a situation
_POOL = 60  # relations that they are drawn from


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is simulated: number of facts, correlation within relations, and what joins trace and score how strongly."""

    facts: int
    icc: float
    kind: str
    gain: float

    def __str__(self) -> str:
        return f"{self.facts} facts, icc {self.icc:g}, {self.kind} {self.gain:g}"


def situations() -> Iterator[Situation]:
    """All that `make simulate` covers."""
    joins = [("layer", 0.0), ("layer", 0.01), ("layer", 0.04), ("fact", 0.01), ("fact", 0.04)]
    for facts in (12, 100, 652):
        for icc in (0.0, 0.2):
            for kind, gain in joins:
                yield Situation(facts=facts, icc=icc, kind=kind, gain=gain)
    for icc in (0.0, 0.2):
        for kind, gain in joins:
            yield Situation(facts=40, icc=icc, kind=kind, gain=gain)
    for facts, kind, gain in ((10, "layer", 0.0), (10, "layer", 0.01), (100, "height", 0.01)):
        yield Situation(facts=facts, icc=0.2, kind=kind, gain=gain)


def simulate(
    situation: Situation, runs: int, permutations: int, population: int = 3000, strength: float | None = None
) -> dict[str, Any]:
    """Shares (0 to 1) of `runs` made-up tables in which tests reject at 5 % and 95 % intervals hold the truth.

    population: facts of each relation that truths come from. strength: of the world, where it is known to give the
    gain.
    """
    layers = LAYERS[situation.facts]
    if strength is None:
        world = calibrated(layers, situation.icc, situation.kind, situation.gain)
    else:
        world = World(layers=layers, icc=situation.icc, kind=situation.kind, strength=strength)
    rng = np.random.default_rng(zlib.crc32(str(situation).encode()))
    effects = world.relation_effects(rng, _POOL)
    pool = moments(world, effects, population, rng)
    sizes = np.array(SIZES[situation.facts])
    relation = np.repeat(np.arange(len(sizes)), sizes)
    plan = Resampling(samples=300, permutations=permutations, confidence=0.95, seed=0)
    everywhere = pool.gain(np.full(_POOL, 1 / _POOL)) if situation.gain else 0.0
    picks = [rng.choice(_POOL, len(sizes), replace=False) for _ in range(SETS)]
    rows, targets = [], []
    for run in range(runs):
        pick = picks[run % SETS]
        parts = [world.draw(rng, effects[:, [p]], n) for p, n in zip(pick, sizes, strict=True)]
        x, y = (np.concatenate([part[side][0] for part in parts]) for side in (0, 1))
        facts = table(x, y, relation)
        weights, inner = np.zeros(_POOL), np.zeros(_POOL)
        weights[pick], inner[pick] = sizes / sizes.sum(), (sizes - 1) / (sizes - 1).sum()
        row, target = _run(facts, y, pool, weights, inner, plan)
        rows.append({**row, "everywhere": row.pop("_low") <= everywhere <= row.pop("_high")})
        targets.append(target)
    truth = np.array([target[0] for target in targets])
    for place in range(SETS):
        truth[place::SETS] = truth[place::SETS].mean()
    held = [low <= t <= high for t, (_, low, high) in zip(truth, targets, strict=True)]
    shares = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return (
        asdict(situation) | {"runs": runs, "permutations": permutations} | shares | {"cv_cover": float(np.mean(held))}
    )


def _run(
    facts: Profiles, y: NDArray[np.float64], pool: Moments, weights: NDArray[np.float64],
    inner: NDArray[np.float64], plan: Resampling,
) -> tuple[dict[str, Any], tuple[float, float, float]]:  # fmt: skip
    """One table's outcomes, and (the fitted models' gain in the population, low, high) of the held-out gain."""
    layer, diff = r2_layer_and_diff(facts)
    chance = (1 - layer) / (facts.n_facts - 1)
    gain, slope, cv = gain_inference(facts, diff, chance, plan), within_slope(facts, 0.95), held_out(facts, FOLDS, plan)
    true, true_slope = pool.gain(weights), pool.slope(inner)
    left = facts.n_facts * facts.n_layers - 2 * facts.n_layers
    f = diff / facts.n_layers / ((1 - layer - diff) / left)
    mean, low, high, _ = mean_interval(y, plan)
    varied = mean != np.round(mean)
    true_mean = weights @ pool.y
    row = {
        "gain_cover": gain.low <= true <= gain.high,
        "bound_cover": true <= gain.bound,
        "gain_above_0": gain.low > 0,
        "gain_below_0": gain.high < 0,
        "permutation": gain.pvalue <= 0.05,
        "permutation_all": gain.pvalue_all <= 0.05,
        "f_test": stats.f.sf(f, facts.n_layers, left) <= 0.05,
        "within": slope.pvalue <= 0.05,
        "within_cover": slope.low <= true_slope <= slope.high,
        "cv_above_0": cv.low > 0,
        "means_cover": float(np.mean(((low <= true_mean) & (true_mean <= high))[varied])),
        "true_gain": true,
        "true_slope": true_slope,
        "_low": gain.low,
        "_high": gain.high,
    }
    return row, (_population_gain(facts, y, pool, weights, plan.seed), cv.low, cv.high)


def _population_gain(
    facts: Profiles, y: NDArray[np.float64], pool: Moments, weights: NDArray[np.float64], seed: int
) -> float:
    """What the held-out models, as fitted, would add to R² on the whole population; mean over folds."""
    x, s, xx, xy, yy = (weights @ part for part in (pool.x, pool.y, pool.xx, pool.xy, pool.yy))
    better = whole = 0.0
    for test, fit in fold_fits(facts, FOLDS, seed):
        at_x, at_y = fit.x_mean + facts.trace.mean(0), fit.y_mean + y.mean(0)
        cross, square = xy - at_x * s - at_y * x + at_x * at_y, xx - 2 * at_x * x + at_x**2
        better += test.sum() * float((2 * fit.slope * cross - fit.slope**2 * square).sum())
        whole += test.sum() * float((yy - 2 * fit.center * s + fit.center**2).sum())
    return better / whole


_COLUMNS = (
    ("gain, interval", "gain_cover"), ("gain, bound", "bound_cover"), ("within slope, interval", "within_cover"),
    ("held-out gain, interval", "cv_cover"), ("means by layer, bands", "means_cover"), ("permutation", "permutation"),
    ("within slope, test", "within"), ("gain_low > 0", "gain_above_0"), ("cv_gain_low > 0", "cv_above_0"),
    ("permutation, all facts", "permutation_all"), ("F-test", "f_test"),
    ("gain of all relations in interval", "everywhere"),
)  # fmt: skip


def as_table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, in percent."""
    heads = ["facts", "relations alike", "joined by", "gain", *(head for head, _ in _COLUMNS)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in results:
        joined = (
            "nothing" if not row["gain"] else {"layer": "each layer", "fact": "fact", "height": "height"}[row["kind"]]
        )
        cells = [str(row["facts"]), f"{row['icc']:g}", joined, f"{row['gain']:g}"]
        lines.append("| " + " | ".join([*cells, *(f"{100 * row[name]:.1f}" for _, name in _COLUMNS)]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate what is not yet in the results file, print the table, and with --write put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="made-up tables for each situation")
    parser.add_argument("--permutations", type=int, default=299)
    parser.add_argument("--part", default="0/1", help="i/n: every n-th situation from the i-th, for n processes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="put the table into docs/statistics.md")
    options = parser.parse_args()
    part, parts = (int(number) for number in options.part.split("/"))
    for situation in list(situations())[part::parts]:
        known = json.loads(options.results.read_text()) if options.results.exists() else {}
        if str(situation) in known and known[str(situation)]["runs"] >= options.runs:
            continue
        result = simulate(situation, options.runs, options.permutations)
        known = json.loads(options.results.read_text()) if options.results.exists() else {}
        options.results.write_text(json.dumps(known | {str(situation): result}, indent=1) + "\n")
        print(as_table([result]).splitlines()[-1], flush=True)
    known = json.loads(options.results.read_text())
    by_facts = sorted(situations(), key=lambda situation: (situation.kind == "height", situation.facts))
    text = as_table([known[str(situation)] for situation in by_facts if str(situation) in known])
    print(text)
    if options.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
        PAGE.write_text(before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")


if __name__ == "__main__":
    main()
