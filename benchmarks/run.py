"""`make bench`: the fast path against the plain one on the embedded model, on the CPU, with one thread each.

Prints a table, writes benchmarks/results.json and ends with one line of JSON. Exit status 1 if an equality bound is
broken, never for a slow machine. One thread, because that is what each worker of a run has, and because the timing
of many small products on several threads says more about other processes than about the code.
"""

from __future__ import annotations

import copy
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import compare
from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.edit.protocol import Resources
from pipeline.facts.readers import read_fact_file
from pipeline.lm.forward import proven
from pipeline.lm.model import LanguageModel, wrap
from pipeline.progress import say
from pipeline.tables import write_json
from pipeline.watch import Peak

RESULTS = Path("benchmarks/results.json")
PLAIN_EDITS, PLAIN_CELLS, PLAIN_PASSES = 10, 12, (0, 15, 29)
TRACED = 3  # facts
DEPTHS, FACTS = (8, 15, 30), (1, 2, 4)


def shallow(lm: LanguageModel, depth: int) -> LanguageModel:
    """The first `depth` blocks of a Llama-family model as a model of its own; weights are shared."""
    model: Any = copy.copy(lm.model)
    model._modules = dict(lm.model._modules)
    model.model = copy.copy(lm.model.model)
    model.model._modules = dict(lm.model.model._modules)
    model.model.layers = torch.nn.ModuleList(lm.model.model.layers[:depth])
    model.config = copy.deepcopy(lm.model.config)
    model.model.config = model.config
    model.config.num_hidden_layers = depth
    return replace(wrap(model, lm.tokenizer), fast=lm.fast)


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> int:
    settings = methods.load("presets/default.yaml")
    compute = settings.compute.model_copy(update={"threads": 1, "workers": 1})
    settings = settings.model_copy(update={"compute": compute})
    with Peak() as peak:
        lm = proven(opened(settings))
        facts, sd = compare.known_facts(lm, settings, TRACED)
        fact = facts[0]
        say(f"edited: {fact.text} | {fact.target_true}")
        every = read_fact_file(settings.facts.source, Path(settings.facts.path), settings.seed).facts
        batches = compare.text(lm, every, 4096)
        moments_row, moments = compare.compare_moments(lm, batches, PLAIN_PASSES)
        resources = Resources(moments.__getitem__, compare.RIDGE)
        say("second moments done")
        traces = [compare.compare_trace(lm, each, sd, settings.noise.samples, PLAIN_CELLS) for each in facts]
        trace_row = compare.together(f"tracing, {TRACED} facts", traces)
        say("tracing done")
        work = compare.cases(lm, settings, fact, sd, settings.edit.problems)
        layers = range(lm.n_layers)
        edit_row, score_row, odd = compare.compare_edits(lm, settings, work, resources, layers, PLAIN_EDITS)
        say("editing and scoring done")

        doubled = proven(wrap(copy.deepcopy(lm.model).double(), lm.tokenizer))
        few = [2, 14, 26, 28]
        precise = compare.cases(doubled, settings, fact, sd, settings.edit.problems[:1])
        edit64, score64, _ = compare.compare_edits(doubled, settings, precise, resources, few, 2, bounds=(1e-8, 1e-8))
        trace64 = compare.compare_trace(doubled, fact, sd, 2, 4, bound=1e-9)
        del doubled
        say("float64 done")

        sweep = []
        for depth in DEPTHS:
            part = shallow(lm, depth)
            case = compare.cases(part, settings, fact, sd, settings.edit.problems[:1])[0]
            rome = compare.editor(settings, case.problem, resources, range(depth))
            sweep.append(compare.timed(lambda: rome.edit(part, case.request, range(depth)))[0])  # noqa: B023
        depth_exponent = exponent(DEPTHS, sweep)
        case = work[0]
        rome = compare.editor(settings, case.problem, resources, layers)
        many = [
            compare.timed(lambda: [rome.edit(lm, case.request, range(20, 30)) for _ in range(count)])[0]  # noqa: B023
            for count in FACTS
        ]
        facts_exponent = exponent(FACTS, many)

    rows = [edit_row, score_row, trace_row, moments_row]
    print(f"\n{'what':<34}{'plain s':>10}{'fast s':>9}{'ratio':>8}{'largest difference':>30}")
    for row in rows:
        print(f"{row.what:<34}{row.plain:>10.1f}{row.fast:>9.1f}{row.ratio:>8.1f}{row.difference:>16.1e} {row.of}")
    for row in (edit64, score64, trace64):
        print(f"{'float64: ' + row.what:<61}{row.difference:>16.1e} {row.of}")
    print(f"cost grows as facts^{facts_exponent:.2f} and depth^{depth_exponent:.2f} (all-layer sweep)")
    print(f"memory at the peak, plain path and float64 copy included: {peak.gb:.2f} GB")
    for line in odd:
        print(f"beyond its bound in float32: {line}")

    summary = {
        "rome_ratio": round(edit_row.ratio, 2),
        "score_ratio": round(score_row.ratio, 2),
        "trace_ratio": round(trace_row.ratio, 2),
        "moments_ratio": round(moments_row.ratio, 2),
        "max_abs_prob_diff": max(score_row.difference, trace_row.difference),
        "peak_gb": round(peak.gb, 2),
        "fast_edit_seconds": round((edit_row.fast + score_row.fast) / (len(work) * lm.n_layers), 4),
        "facts_exponent": round(facts_exponent, 3),
        "depth_exponent": round(depth_exponent, 3),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
    }
    checks = [*rows, edit64, score64, trace64]
    detail = [vars(row) | {"ratio": row.ratio, "equal": row.equal} for row in checks]
    write_json({"summary": summary, "rows": detail, "beyond_bound": odd}, RESULTS)
    broken = [row for row in checks if not row.equal]
    for row in broken:
        print(f"NOT EQUAL: {row.what}: {row.difference:.1e} {row.of}, bound {row.bound:.0e}", file=sys.stderr)
    print(json.dumps(summary))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
