"""`python -m benchmarks.localizers`: what each localizer costs beside exact tracing of one fact, on the embedded model.

One thread, as each worker of a run has; each localizer is run once to warm up, on another fact, and then timed. Prints
a table, writes benchmarks/localizers.json.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import torch

from benchmarks import compare
from benchmarks.compare import timed
from pipeline.compute.fetch import opened
from pipeline.compute.localize_job import case
from pipeline.edit import methods
from pipeline.facts import known
from pipeline.facts.fact import Fact
from pipeline.lm.forward import proven
from pipeline.lm.memory import budget, rows_within
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.locate.localizers import LOCALIZERS
from pipeline.locate.tracing import FactTrace
from pipeline.progress import say
from pipeline.settings.params import Params
from pipeline.tables import write_json

RESULTS = Path("benchmarks/localizers.json")


def trace(lm: LanguageModel, params: Params, fact: Fact, sd: float) -> None:
    """Exact tracing of one fact as the stage `trace` does it: the MLPs of every window of `trace.windows`."""
    samples = params.noise.samples
    noise = NoiseTable(params.seed, fact.fact_id, sd, samples, lm.embedding_width)
    traced, memory = FactTrace(lm, known.fact_prompt(lm, fact), noise, samples), budget(None, lm.device, gradient=False)
    reads = len(traced.prompt.reads) * traced.prompt.target_start
    for window in params.trace.windows:
        traced.fast("mlp", window, rows_within(lm, memory, reads, gradient=False))


def main() -> int:
    params = methods.load("presets/default.yaml")
    params = params.model_copy(update={"compute": params.compute.model_copy(update={"threads": 1, "workers": 1})})
    torch.set_num_threads(1)
    lm = proven(opened(params))
    (warm, fact), sd = compare.known_facts(lm, params, 2)
    memory = budget(None, lm.device, gradient=True)
    work = {"exact tracing": lambda of: trace(lm, params, of, sd)} | {
        name: (lambda of, localizer=localizer: localizer.locate(lm, case(lm, params, of, sd, memory)))
        for name, localizer in LOCALIZERS.items()
    }
    seconds = {}
    for name, locate in work.items():
        locate(warm)
        seconds[name], _ = timed(lambda locate=locate: locate(fact))  # type: ignore[misc]
        say(f"{name}: done")
    exact = seconds["exact tracing"]
    print(f"{'localizer':<28}{'seconds':>9}{'of exact tracing':>18}")
    for name, took in seconds.items():
        print(f"{name:<28}{took:>9.3f}{took / exact:>18.3f}")
    rows = [{"localizer": name, "seconds": took, "share": took / exact} for name, took in seconds.items()]
    machine = f"{platform.machine()}, one thread, torch {torch.__version__}"
    told = {"machine": machine, "fact": fact.fact_id, "windows": list(params.trace.windows), "rows": rows}
    write_json(told, RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
