"""`python -m benchmarks.methods`: the other editing methods beside their plain paths, on the embedded model, one fact.

As benchmarks/compare.py does for ROME: one thread, the fast path timed on the whole sweep over the blocks, the plain
path on a sample spread over the depth and extrapolated. Prints a table, writes benchmarks/methods.json; exit status 1
if an equality bound is broken.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import compare
from benchmarks.compare import Case, Row, timed
from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.edit.kn import EXCHANGES
from pipeline.edit.moments import second_moments
from pipeline.edit.protocol import Edit, Resources
from pipeline.facts.readers import read_fact_file
from pipeline.lm.forward import proven
from pipeline.lm.memory import budget
from pipeline.lm.model import LanguageModel
from pipeline.progress import say
from pipeline.settings.params import Params
from pipeline.tables import write_json
from pipeline.watch import Peak
from pipeline.words import method_label

RESULTS = Path("benchmarks/methods.json")
SAMPLES = {"memit": 5, "ft_1": 4, "ft_5": 3, "kn": 6}  # edits of the plain path


def moments_of(lm: LanguageModel, params: Params) -> Resources:
    """Second moments of the blocks' keys over a short text, with a ridge as it is short."""
    facts = read_fact_file(params.facts.source, Path(params.facts.path), params.seed).facts
    moments = second_moments(lm, compare.text(lm, facts, 4096), range(lm.n_layers))
    return Resources(moments.__getitem__, compare.RIDGE)


def of_changes(one: Edit, other: Edit) -> float:
    """Distance of the changed matrices, relative to the second edit's, the largest over the blocks."""
    pairs = [(a.matrix().double(), b.matrix().double()) for a, b in zip(one.updates, other.updates, strict=True)]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def of_losses(one: Edit, other: Edit) -> float:
    """Relative difference of the last losses. In float32 the changes of fine-tuning themselves differ: Adam takes an
    entry whose gradient is no more than rounding as far as any other, and in which direction is chance.
    """
    return abs(one.loss - other.loss) / abs(other.loss)


def of_neurons(one: Edit, other: Edit) -> float:
    """Share of the neurons of either edit that the other lacks."""
    sets = [
        {(update.layer, int(i)) for update in edit.updates for i in update.matrix().any(0).nonzero()[:, 0]}
        for edit in (one, other)
    ]
    either = len(sets[0] | sets[1])
    return len(sets[0] ^ sets[1]) / either if either else 0.0


Measure = tuple[Callable[[Edit, Edit], float], str, float]  # of two edits, its name, its bound
MEASURES: dict[str, Measure] = {
    "memit": (of_changes, "relative change of W", 1e-2),
    "ft_1": (of_losses, "relative loss", 1e-2),
    "ft_5": (of_losses, "relative loss", 1e-2),
    "kn": (of_neurons, "share of neurons", 0.05),
}


def compare_method(
    lm: LanguageModel, params: Params, method: str, work: Sequence[Case], resources: Resources, sample: int
) -> Row:
    """One method at every block, for each case."""
    memory, layers, seconds = budget(None, lm.device, gradient=True), range(lm.n_layers), 0.0
    difference, of, bound = MEASURES[method]
    edits: dict[str, list[Edit]] = {}

    def editor(problem: str, path: str) -> Any:
        settings = methods.SETTINGS[method](**params.for_problem(method, problem))
        made: Any = methods.METHODS[method].editor(settings, Resources(resources.moment, resources.ridge, path))
        for layer in layers if methods.METHODS[method].moments else ():
            made.whiteners.of(layer)  # so that no time is taken for that later
        return made

    for case in work:
        fast = editor(case.problem, "fast")
        took, edits[case.problem] = timed(lambda fast=fast, case=case: fast.edit(lm, case.request, layers, memory))  # type: ignore[misc]
        seconds += took
    plain, worst = [], 0.0
    acting = [at for at in layers if all(edits[case.problem][at].acts for case in work)]
    slow = {case.problem: editor(case.problem, "plain") for case in work}
    for i, at in enumerate(acting[j] for j in np.linspace(0, len(acting) - 1, sample).astype(int)):
        case = work[i % len(work)]
        took, (edit,) = timed(lambda case=case, at=at: slow[case.problem].edit(lm, case.request, [at]))  # type: ignore[misc]
        plain.append(took)
        worst = max(worst, difference(edits[case.problem][at], edit))
    count = len(work) * len(layers)
    name = f"{method_label(method)}, {len(layers)} blocks x {len(work)} problem{'s' * (len(work) > 1)}"
    say(f"{name}: done")
    return Row(name, statistics.mean(plain) * count, seconds, worst, of, bound, count)


def main() -> int:
    params = methods.load("presets/default.yaml")
    params = params.model_copy(update={"compute": params.compute.model_copy(update={"threads": 1, "workers": 1})})
    torch.set_num_threads(1)
    lm = proven(opened(params))
    (fact, *_), sd = compare.known_facts(lm, params, 1)
    resources = moments_of(lm, params)
    rows, peaks = [], []
    for method, sample in SAMPLES.items():
        problems = [*EXCHANGES] if method == "kn" else ["error_injection"]
        with Peak() as peak:
            work = compare.cases(lm, params, fact, sd, problems)
            rows.append(compare_method(lm, params, method, work, resources, sample))
        peaks.append(round(peak.gb, 2))
    print(f"{'what':<34}{'plain s':>10}{'fast s':>9}{'ratio':>8}{'peak GB':>9}{'largest difference':>32}")
    for row, gb in zip(rows, peaks, strict=True):
        numbers = f"{row.plain:>10.1f}{row.fast:>9.1f}{row.ratio:>8.1f}{gb:>9.2f}{row.difference:>11.1e}"
        print(f"{row.what:<34}{numbers} {row.of}")
    detail = [vars(row) | {"ratio": row.ratio, "peak_gb": gb} for row, gb in zip(rows, peaks, strict=True)]
    write_json({"machine": f"{platform.machine()}, one thread, torch {torch.__version__}", "rows": detail}, RESULTS)
    return 0 if all(row.equal for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
