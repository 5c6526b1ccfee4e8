"""`python -m benchmarks.methods`: the other editing methods beside their plain paths, embedded model, one fact.

As benchmarks/compare.py does for ROME: one thread, the plain path timed on a sample spread over the depth and
extrapolated, the fast path timed whole. Prints a table; exit status 1 if an equality bound is broken.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks import compare
from benchmarks.compare import Case, Row, timed
from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.edit.kn import EXCHANGES, Kn, KnSettings
from pipeline.edit.protocol import Edit, Resources
from pipeline.lm.forward import proven
from pipeline.lm.memory import budget
from pipeline.lm.model import LanguageModel
from pipeline.settings.params import Params
from pipeline.watch import Peak

PLAIN_KN = 6  # edits


def no_moment(layer: int) -> torch.Tensor:
    """For methods that need no second moment."""
    raise AssertionError(f"no method here asks for the second moment of block {layer}")


def same_neurons(one: Edit, other: Edit) -> float:
    """Share of the neurons of either edit that the other lacks."""
    sets = [
        {(update.layer, int(i)) for update in edit.updates for i in update.matrix().any(0).nonzero()[:, 0]}
        for edit in (one, other)
    ]
    either = len(sets[0] | sets[1])
    return len(sets[0] ^ sets[1]) / either if either else 0.0


def compare_kn(
    lm: LanguageModel, params: Params, work: Sequence[Case], layers: Sequence[int], sample: int, bound: float = 0.05
) -> Row:
    """KN at `layers`, a window of one block each, for each case that it is defined for."""
    work = [case for case in work if case.problem in EXCHANGES]
    memory, seconds = budget(None, lm.device, gradient=True), 0.0
    edits: dict[str, list[Edit]] = {}

    def editor(problem: str, path: str) -> Kn:
        settings = KnSettings(**params.for_problem("kn", problem) | {"window": 1})
        return Kn(settings, Resources(no_moment, path=path))

    for case in work:
        fast = editor(case.problem, "fast")
        took, edits[case.problem] = timed(lambda fast=fast, case=case: fast.edit(lm, case.request, layers, memory))  # type: ignore[misc]
        seconds += took
    plain, worst = [], 0.0
    for i, at in enumerate(np.linspace(0, len(layers) - 1, sample).astype(int)):
        case = work[i % len(work)]
        slow = editor(case.problem, "plain")
        took, (edit,) = timed(lambda slow=slow, case=case, at=at: slow.edit(lm, case.request, [layers[at]]))  # type: ignore[misc]
        plain.append(took)
        worst = max(worst, same_neurons(edits[case.problem][at], edit))
    count = len(work) * len(layers)
    name = f"KN, {len(layers)} blocks x {len(work)} problems"
    return Row(name, statistics.mean(plain) * count, seconds, worst, "share of neurons", bound, count)


def main() -> int:
    settings = methods.load("presets/default.yaml")
    settings = settings.model_copy(update={"compute": settings.compute.model_copy(update={"threads": 1, "workers": 1})})
    with Peak() as peak:
        lm = proven(opened(settings))
        torch.set_num_threads(1)
        (fact, *_), sd = compare.known_facts(lm, settings, 1)
        work = compare.cases(lm, settings, fact, sd, [*EXCHANGES])
        rows = [compare_kn(lm, settings, work, range(lm.n_layers), PLAIN_KN)]
    print(f"{'what':<34}{'plain s':>10}{'fast s':>9}{'ratio':>8}{'largest difference':>30}")
    for row in rows:
        print(f"{row.what:<34}{row.plain:>10.1f}{row.fast:>9.1f}{row.ratio:>8.1f}{row.difference:>16.1e} {row.of}")
    print(f"memory at the peak: {peak.gb:.2f} GB")
    return 0 if all(row.equal for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
