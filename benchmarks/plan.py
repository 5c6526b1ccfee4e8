"""What a run would cost on hardware that is not at hand: operations counted, schedule simulated.

    python -m benchmarks.plan --preset paper-gptj --shape gpt-j-6b --facts 652 --rate 2.5e13
    python -m benchmarks.plan --preset cluster --shape llama-3-70b --layers 9 --facts 10000 \\
        --workers 1 2 16 --gpus-per-worker 4 --rate 3e14 --start 300

Counts the matrix products of every stage from the model's shape (a token costs two operations a weight of each block
that it passes) and the preset's settings, divides them by `--rate`, and hands the facts out to workers as
the engine does: one stage after the other, each worker loading the model at each stage's beginning, facts in order
to whoever is free. Prints hours, how busy the workers are, and what the second moments hold. docs/scale.md and the
README's table of presets read the result.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

import numpy as np

from pipeline.edit import methods
from pipeline.settings.params import Params


@dataclass(frozen=True)
class Shape:
    """block: weights of a block's matrices. width: of the residual stream. keys: of the down-projection's input."""

    layers: int
    block: float
    width: int
    keys: int
    vocabulary: int

    @property
    def weights(self) -> float:
        return self.layers * self.block + 2.0 * self.vocabulary * self.width

    @property
    def head(self) -> float:
        return float(self.vocabulary) * self.width


SHAPES = {
    "gpt2-xl": Shape(48, 12 * 1600**2, 1600, 6400, 50257),
    "qwen3-8b": Shape(36, 3 * 4096 * 12288 + 4096 * (2 * 4096 + 2 * 1024), 4096, 12288, 151936),
    "smollm2-135m": Shape(30, 3 * 576 * 1536 + 576 * (2 * 576 + 2 * 192), 576, 1536, 49152),
    "gpt-j-6b": Shape(28, 12 * 4096**2, 4096, 16384, 50400),
    "llama-3-70b": Shape(80, 3 * 8192 * 28672 + 8192 * (2 * 8192 + 2 * 1024), 8192, 28672, 128256),
}


@dataclass(frozen=True)
class Work:
    """What is asked of each fact, and how long its prompts are, in tokens (means)."""

    edited: int  # layers, spread evenly
    prompts: int  # with context prefixes, the bare one included
    problems: int
    steps: int
    samples: int
    traces: int  # modules times windows
    tokens: int  # of the text for the second moments
    subject: float = 4.0
    after: float = 5.0  # the prompt's tokens after the subject
    before: float = 1.5
    target: float = 1.2
    scored: float = 150.0  # of all prompts by which an edit is scored, shared beginnings counted once
    scored_reads: float = 26.0
    spread: float = 0.35  # standard deviation of the logarithm of a fact's cost

    @classmethod
    def of(cls, settings: Params, edited: int) -> Work:
        statistics = settings.statistics
        return cls(
            edited=edited,
            prompts=1 + len(statistics.prefix_lengths) * statistics.prefixes_per_length,
            problems=len(settings.edit.problems),
            steps=settings.sections["rome"]["steps"],
            samples=settings.noise.samples,
            traces=len(settings.trace.modules) * len(settings.trace.windows),
            tokens=statistics.tokens,
        )

    def above(self, shape: Shape) -> float:
        """Blocks that the edits of all layers climb, together."""
        return float(sum(shape.layers - 1 - layer for layer in np.linspace(0, shape.layers - 1, self.edited)))

    def moments(self, shape: Shape) -> float:
        """Operations of the second moments: every token passes all blocks, and adds k kT at each edited layer."""
        return 2.0 * self.tokens * (shape.layers * shape.block + self.edited * shape.keys**2)

    def trace(self, shape: Shape) -> float:
        """Operations of one fact's traces: each restoration runs the tokens and blocks after it."""
        tokens = self.before + self.subject + self.after + self.target - 1
        cells = shape.layers * tokens
        suffixes = tokens * (tokens + 1) / 2 * shape.layers * (shape.layers + 1) / 2
        return 2.0 * self.traces * self.samples * (suffixes * shape.block + cells * self.target * shape.head)

    def edit(self, shape: Shape) -> float:
        """Operations of one fact's edits for one problem, scoring included."""
        live = self.prompts * (self.after + self.target) + 1
        reads = self.prompts * self.target + 1
        optimise = 4.0 * self.steps * (live * shape.block * self.above(shape) + reads * shape.head * self.edited)
        score = 2.0 * (self.scored * shape.block * self.above(shape) + self.scored_reads * shape.head * self.edited)
        return optimise + score


@dataclass(frozen=True)
class Stage:
    """hours from first to last; busy: share of the workers' time that is spent on units."""

    name: str
    hours: float
    busy: float


def schedule(seconds: np.ndarray, workers: int, start: float) -> tuple[float, float]:
    """(seconds until the last unit is done, share of the workers' time spent on units), units in order."""
    free = [start] * min(workers, len(seconds))
    for cost in seconds:
        heapq.heappush(free, heapq.heappop(free) + float(cost))
    end = max(free)
    return end, float(seconds.sum()) / (workers * end)


def plan(shape: Shape, work: Work, facts: int, workers: int, rate: float, start: float, seed: int = 0) -> list[Stage]:
    """The long stages, one after the other. rate: operations a second of a worker. start: seconds to load the model."""
    chance = np.random.default_rng(seed)
    factor = chance.lognormal(-(work.spread**2) / 2, work.spread, facts)  # long facts are long in every stage
    alone = start + work.moments(shape) / rate
    stages = [Stage("moments", alone / 3600, (alone - start) / alone / workers)]
    for name, operations in [("trace", work.trace(shape)), *[("edit", work.edit(shape))] * work.problems]:
        end, busy = schedule(factor * operations / rate, workers, start)
        stages.append(Stage(name, end / 3600, busy))
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper-gptj", help="a file of presets/, for what is asked of each fact")
    parser.add_argument("--shape", choices=SHAPES, default="gpt-j-6b")
    parser.add_argument("--facts", type=int, default=652)
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="each with a model of its own")
    parser.add_argument("--gpus-per-worker", type=int, default=1)
    parser.add_argument("--rate", type=float, default=3e14, help="operations a second that a worker gets done")
    parser.add_argument("--layers", type=int, help="edited layers, spread evenly, in place of the preset's")
    parser.add_argument("--start", type=float, default=60.0, help="seconds in which a worker loads the model")
    asked = parser.parse_args()
    shape, settings = SHAPES[asked.shape], methods.load(f"presets/{asked.preset}.yaml")
    edited = asked.layers or len(settings.edit.layer_list(shape.layers))
    work = Work.of(settings, edited)
    moments = edited * shape.keys**2 * 4 / 1e9
    print(f"{asked.shape}: {shape.weights / 1e9:.2f} G weights, {2 * shape.weights / 1e9:.1f} GB in bfloat16")
    print(
        f"second moments of {edited} layers: {moments:.1f} GB on disk, {2 * moments:.1f} GB as float64 factors"
        f" in every worker, {edited * shape.keys**3 / 3e12:.1f} T operations to factor"
    )
    print(f"a fact: traces {work.trace(shape):.2e} operations, edits of one problem {work.edit(shape):.2e}")
    print(f"{'GPUs':>6}{'workers':>9}{'moments h':>11}{'traces h':>10}{'edits h':>9}{'in all h':>10}{'busy':>7}")
    for workers in asked.workers:
        stages = plan(shape, work, asked.facts, workers, asked.rate, asked.start)
        total, gpus = sum(stage.hours for stage in stages), workers * asked.gpus_per_worker
        busy = sum(stage.busy * stage.hours for stage in stages) / total
        first, trace = stages[0].hours, stages[1].hours
        edits = total - first - trace
        print(f"{gpus:>6}{workers:>9}{first:>11.1f}{trace:>10.1f}{edits:>9.1f}{total:>10.1f}{busy:>7.0%}")


if __name__ == "__main__":
    main()
