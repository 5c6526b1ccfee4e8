"""`make bench-gpu`: rates on a GPU, for the embedded model and for a model of GPT-J-6B's shape.

The second has random weights, made in place from its config: speed does not depend on what the weights know. From
the rates come the GPU hours of the paper's ROME grid (652 facts, 9 layers, 5 problems; 21 prefixed prompts). Writes
benchmarks/gpu.json. `--shape tiny --device cpu` runs the same code on any machine, to try the script.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import compare
from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.edit.protocol import Resources
from pipeline.errors import UserError
from pipeline.facts.fact import Fact
from pipeline.lm.forward import proven
from pipeline.lm.load import pick_device
from pipeline.lm.model import LanguageModel, wrap
from pipeline.progress import say
from pipeline.settings.params import Params
from pipeline.tables import write_json

RESULTS = Path("benchmarks/gpu.json")
PAPER_FACTS, PAPER_ERASED, PAPER_PREFIXES = 652, 489, 21
SHAPES: dict[str, dict[str, Any]] = {
    "gpt-j-6b": {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400},
    "tiny": {"n_embd": 64, "n_layer": 6, "n_head": 4, "rotary_dim": 8, "vocab_size": 50400},
}
LAYERS = {"gpt-j-6b": (0, 4, 5, 8, 12, 16, 20, 24, 27), "tiny": (0, 2, 5)}
FACT = Fact(
    fact_id="eiffel",
    relation="P30",
    subject="The Eiffel Tower",
    prompt="{} is located on the continent of",
    target_true="Europe",
    target_false="Asia",
    paraphrases=("To see The Eiffel Tower one travels to", "The Eiffel Tower stands somewhere in"),
    neighborhood=tuple(f"The {name} is located on the continent of" for name in ("Rhine", "Danube", "Alps", "Louvre")),
)


def random_gptj(shape: str, device: torch.device, tokenizer: Any, dtype: torch.dtype) -> LanguageModel:
    """A GPT-J of the given shape with random weights, built on the device; it reads the embedded model's tokens."""
    config = transformers.GPTJConfig(**SHAPES[shape], n_positions=2048, bos_token_id=0, eos_token_id=0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = transformers.AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return proven(wrap(model, tokenizer, name=f"random {shape}"))


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Measured FLOP/s of a large square product: what a share of the peak refers to."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    seconds, _ = compare.timed(lambda: [a @ b for _ in range(10)])
    return 20 * size**3 / seconds


def rates(
    lm: LanguageModel, settings: Params, layers: tuple[int, ...], fact: Fact, sd: float, plain: int, peak: float
) -> dict[str, Any]:
    """Edits and tracing cells a second, the plain path's beside them, and the largest differences."""
    size = lm.arch.key_size(layers[0])
    eye = torch.eye(size, device=lm.device)  # speed does not depend on the second moments' values
    resources = Resources(lambda layer: eye)
    work = compare.cases(lm, settings, fact, sd, settings.edit.problems)
    compare.compare_edits(lm, settings, work[:1], resources, layers, 1)  # warm up
    edit, score, odd = compare.compare_edits(lm, settings, work, resources, layers, plain)
    trace = compare.compare_trace(lm, fact, sd, settings.noise.samples, plain)
    flops = compare.optimisation_flops(lm, work, layers, settings.sections["rome"]["steps"])
    return {
        "layers": list(layers),
        "edits_per_second": edit.units / (edit.fast + score.fast),
        "plain_edits_per_second": edit.units / (edit.plain + score.plain),
        "share_of_matrix_peak": flops / edit.fast / peak,
        "rome_ratio": edit.ratio,
        "score_ratio": score.ratio,
        "trace_ratio": trace.ratio,
        "trace_cells_per_second": trace.units / trace.fast,
        "trace_seconds_per_fact": trace.fast,
        "seconds_per_fact": edit.fast + score.fast,
        "max_abs_prob_diff": max(score.difference, trace.difference),
        "max_relative_value_diff": edit.difference,
        "beyond_bound": odd,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="gpt-j-6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", help="folder of the embedded model, where it is not to be fetched")
    parser.add_argument("--plain", type=int, default=5, help="edits and cells timed on the plain path")
    asked = parser.parse_args()
    device = pick_device(asked.device)
    settings = methods.load("presets/default.yaml")
    updated = {
        "model": settings.model.model_copy(update={"device": asked.device, "name": asked.model or settings.model.name})
    }
    settings = settings.model_copy(update=updated)
    start = time.perf_counter()
    embedded = proven(opened(settings, alone=True))
    dtype = torch.float32
    peak = matrix_peak(device, dtype, 8192 if device.type == "cuda" else 1024)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "dtype": "float32", "matrix_peak_flops": peak}
    (fact,), sd = compare.known_facts(embedded, settings, 1)
    result["embedded"] = rates(embedded, settings, tuple(range(embedded.n_layers)), fact, sd, asked.plain, peak)
    say("embedded model done")
    compare.PREFIXES = tuple([""] + ["The weather was fine that day. "] * (PAPER_PREFIXES - 1))
    big = random_gptj(asked.shape, device, embedded.tokenizer, dtype)
    del embedded
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    measured = rates(big, settings, LAYERS[asked.shape], FACT, 0.1, asked.plain, peak)
    measured["paper_grid_gpu_hours"] = measured["seconds_per_fact"] * (4 * PAPER_FACTS + PAPER_ERASED) / 5 / 3600
    measured["paper_tracing_gpu_hours"] = measured["trace_seconds_per_fact"] * PAPER_FACTS / 3600
    if device.type == "cuda":
        measured["peak_gb"] = torch.cuda.max_memory_allocated() / 1024**3
    result[asked.shape] = measured
    result["seconds"] = time.perf_counter() - start
    if asked.shape == "gpt-j-6b":
        write_json(result, RESULTS)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
