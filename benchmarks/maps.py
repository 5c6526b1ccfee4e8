"""`python -m benchmarks.maps [FACTS]`: the maps' traces beside their plain paths, on the embedded model, one thread.

All that `make maps` computes for the first known facts (3, or as many as asked): hidden states, MLP and attention at
each of maps.windows, and the severed models, every token from the subject on at every layer. The fast path is timed
whole, the plain path on cells spread over tokens and layers, and extrapolated. Prints a table, writes
benchmarks/maps.json; exit status 1 if a probability differs by more than BOUND.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import compare
from benchmarks.compare import Row, timed, together
from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.facts import known
from pipeline.facts.fact import Fact
from pipeline.lm.forward import proven
from pipeline.lm.memory import budget, rows_within
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.locate.severed import SeveredTrace
from pipeline.locate.tracing import FactTrace
from pipeline.progress import say
from pipeline.settings.params import Params
from pipeline.tables import write_json

RESULTS = Path("benchmarks/maps.json")
CELLS = 6  # of the plain path, for each fact and trace
BOUND = 1e-4


def compare_runs(traces: Sequence[FactTrace]) -> Row:
    """The clean and corrupted runs that a fact's traces go on from: one for those of whole models, one for each
    severed one, as the stage makes them.
    """
    fast, recorded = timed(lambda: [(traced.clean, traced.corrupt) for traced in traces])
    plain, _ = timed(lambda: [(traced.p_clean, traced.p_corrupt) for traced in traces])
    return Row("clean and corrupted runs", plain, fast, 0.0, "probability", BOUND, 2 * len(recorded))


def compare_trace(lm: LanguageModel, traced: FactTrace, what: str, module: str, window: int) -> Row:
    """One trace of one fact, whose clean and corrupted runs are there."""
    memory, prompt = budget(None, lm.device, gradient=False), traced.prompt
    assert prompt.subject is not None
    rows = rows_within(lm, memory, len(prompt.reads) * prompt.target_start, gradient=False)
    seconds, trace = timed(lambda: traced.fast(module, window, rows))
    tokens, plain, worst = range(prompt.subject[0], prompt.target_start), [], 0.0
    traced.plain_cell(module, window, tokens[0], 0)  # makes the clean outputs that all cells share
    for cell in np.linspace(0, len(tokens) * lm.n_layers - 1, CELLS).astype(int):
        token, layer = tokens[cell // lm.n_layers], int(cell % lm.n_layers)
        took, restored = timed(lambda token=token, layer=layer: traced.plain_cell(module, window, token, layer))  # type: ignore[misc]
        plain.append(took)
        worst = max(worst, abs(restored - float(trace.restored[token, layer])))
    cells = len(tokens) * lm.n_layers
    say(f"{prompt.text}, {what}: done")
    return Row(what, statistics.mean(plain) * cells, seconds, worst, "probability", BOUND, cells)


def compare_fact(lm: LanguageModel, params: Params, fact: Fact, sd: float) -> list[Row]:
    """All traces of one fact."""
    samples, prompt = params.noise.samples, known.fact_prompt(lm, fact)

    def noise() -> NoiseTable:
        return NoiseTable(params.seed, fact.fact_id, sd, samples, lm.embedding_width)

    whole = FactTrace(lm, prompt, noise(), samples)
    severed = {name: SeveredTrace(lm, prompt, noise(), samples, name) for name in params.maps.severed}
    found = [compare_runs([whole, *severed.values()]), compare_trace(lm, whole, "hidden, window 1", "hidden", 1)]
    for module, window in itertools.product(("mlp", "attn"), params.maps.windows):
        found.append(compare_trace(lm, whole, f"{module}, window {window}", module, window))
    return found + [compare_trace(lm, cut, f"hidden, {name} severed", "hidden", 1) for name, cut in severed.items()]


def main(count: int) -> int:
    params = methods.load("presets/default.yaml")
    params = params.model_copy(update={"compute": params.compute.model_copy(update={"threads": 1, "workers": 1})})
    torch.set_num_threads(1)
    lm = proven(opened(params))
    facts, sd = compare.known_facts(lm, params, count)
    by_fact = [compare_fact(lm, params, fact, sd) for fact in facts]
    rows = [together(row[0].what, row) for row in zip(*by_fact, strict=True)]
    rows.append(together("all maps", rows))
    print(f"{'what':<24}{'plain s':>10}{'fast s':>9}{'ratio':>8}{'largest difference':>32}")
    for row in rows:
        print(f"{row.what:<24}{row.plain:>10.1f}{row.fast:>9.1f}{row.ratio:>8.1f}{row.difference:>20.1e} {row.of}")
    detail = [vars(row) | {"ratio": row.ratio} for row in rows]
    machine = f"{platform.machine()}, one thread, torch {torch.__version__}"
    write_json({"machine": machine, "facts": [fact.fact_id for fact in facts], "rows": detail}, RESULTS)
    return 0 if all(row.equal for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
