"""`python -m benchmarks.generate`: greedy text of many facts at once against `model.generate`, one fact at a time.

The embedded model, 36 tokens a fact (the known rule `within`), one CPU thread for both. One at a time is timed on a
sample spread over the facts, before, amid and after the batches; every text of the sample is compared. Processor
seconds stand beside the clock's, as other processes slow the clock only. Writes benchmarks/generate.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.facts.known import fact_prompt, greedy_texts
from pipeline.facts.readers import read_fact_file
from pipeline.lm.forward import proven
from pipeline.lm.generate import BATCH
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import Prompt
from pipeline.tables import write_json

RESULTS = Path("benchmarks/generate.json")
TOKENS = 36


def one_at_a_time(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[str]:
    """What `facts.known` did before: transformers' own generation, a prompt a call."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt.ids[: prompt.target_start]], device=lm.device)
        out = lm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=lm.tokenizer.pad_token_id or lm.tokenizer.eos_token_id,
        )
        texts.append(str(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
    return texts


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the clock, of the processor, and the result."""
    clock, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - clock, time.process_time() - processor, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=500)
    parser.add_argument("--sample", type=int, default=24, help="facts timed one at a time")
    asked = parser.parse_args()
    settings = methods.load("presets/default.yaml")
    settings = settings.model_copy(update={"compute": settings.compute.model_copy(update={"threads": 1, "workers": 1})})
    lm = proven(opened(settings))
    torch.set_num_threads(1)
    facts = read_fact_file(settings.facts.source, Path(settings.facts.path), settings.seed).facts
    facts = facts[:: max(1, len(facts) // asked.facts)][: asked.facts]
    prompts = [fact_prompt(lm, fact) for fact in facts]
    groups = [prompts[low : low + BATCH] for low in range(0, len(prompts), BATCH)]
    chosen = list(range(0, len(prompts), -(-len(prompts) // asked.sample)))
    parts = [chosen[i::3] for i in range(3)]  # before, amid and after the batches
    one_at_a_time(lm, prompts[:1])
    greedy_texts(lm, prompts[:2], 2)

    alone: dict[int, str] = {}
    clock_alone = processor_alone = clock = processor = 0.0
    texts: list[str] = []
    for part, batches in zip(parts, (groups[: len(groups) // 2], groups[len(groups) // 2 :], []), strict=True):
        seconds, used, found = timed(lambda part=part: one_at_a_time(lm, [prompts[i] for i in part]))  # type: ignore[misc]
        alone.update(zip(part, found, strict=True))
        clock_alone, processor_alone = clock_alone + seconds, processor_alone + used
        for group in batches:
            seconds, used, found = timed(lambda group=group: greedy_texts(lm, group, TOKENS))  # type: ignore[misc]
            texts += found
            clock, processor = clock + seconds, processor + used
    other = sum(texts[i] != text for i, text in alone.items())
    result = {
        "facts": len(prompts),
        "tokens": TOKENS,
        "sample": len(alone),
        "seconds_a_fact_alone": round(clock_alone / len(alone), 4),
        "seconds_a_fact": round(clock / len(texts), 4),
        "ratio": round(clock_alone / len(alone) * len(texts) / clock, 2),
        "processor_ratio": round(processor_alone / len(alone) * len(texts) / processor, 2),
        "other_texts": other,
    }
    write_json(result, RESULTS)
    print(json.dumps(result))
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
