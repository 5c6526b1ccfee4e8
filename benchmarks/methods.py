"""Methods beside ROME on the fast path and on the plain one: rows for the table of `make bench`.

As in benchmarks.compare, the fast path is timed on the whole sweep, and the plain one on a sample that is spread over
the depth and extrapolated. `python -m benchmarks.methods` prints them for the packaged model, with one thread.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.compare import Case, Row, cases, known_facts, timed
from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.edit.finetune import FineTune, FineTuneSettings
from pipeline.edit.protocol import Resources
from pipeline.errors import UserError
from pipeline.lm.forward import proven
from pipeline.lm.memory import budget
from pipeline.lm.model import LanguageModel
from pipeline.settings.params import Params
from pipeline.watch import Peak
from pipeline.words import method_label


def no_moment(_layer: int) -> torch.Tensor:
    raise UserError("fine-tuning needs no second moment")


def compare_ft(
    lm: LanguageModel,
    params: Params,
    case: Case,
    method: str,
    layers: Sequence[int],
    sample: int,
    bound: float = 1e-2,
) -> Row:
    """Fine-tuning at `layers`; the difference is that of the last losses, on the `sample` edits of the plain path.

    In float32 the changes themselves differ: Adam takes an entry whose gradient is no more than noise as far as any
    other, and in which direction is chance.
    """
    settings = FineTuneSettings(**params.for_problem(method, case.problem))
    memory = budget(None, lm.device, gradient=True)
    seconds, edits = timed(lambda: FineTune(settings, Resources(no_moment)).edit(lm, case.request, layers, memory))
    losses = [edit.loss for edit in edits]
    del edits
    plain, worst = [], 0.0
    slow = FineTune(settings, Resources(no_moment, path="plain"))
    for at in np.linspace(0, len(layers) - 1, sample).astype(int):
        took, (edit,) = timed(lambda at=at: slow.edit(lm, case.request, [layers[at]]))  # type: ignore[misc]
        plain.append(took)
        worst = max(worst, abs(edit.loss - losses[at]) / abs(edit.loss))
    name = f"{method_label(method)}, {len(layers)} blocks, {case.problem.replace('_', ' ')}"
    return Row(name, statistics.mean(plain) * len(layers), seconds, worst, "relative loss", bound, len(layers))


def main() -> None:
    torch.set_num_threads(1)
    params = methods.load("presets/default.yaml")
    with Peak() as peak:
        lm = proven(opened(params))
        (fact, *_), sd = known_facts(lm, params, 1)
        case = cases(lm, params, fact, sd, ["error_injection"])[0]
        rows = [compare_ft(lm, params, case, method, range(lm.n_layers), 5) for method in ("ft_1", "ft_5")]
    for row in rows:
        print(f"{row.what:<40}{row.plain:>8.1f} s plain{row.fast:>8.1f} s fast{row.ratio:>6.1f}{row.difference:>10.1e}")
    print(f"memory at the peak: {peak.gb:.2f} GB")


if __name__ == "__main__":
    main()
