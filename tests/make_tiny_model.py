"""Makes tests/data/tiny_model, the trained small model that tests of tracing and editing work on.

Two machines that train it get two models, as their processors round differently; a test of what a method does wants
one. So this one is committed: trained by pipeline.lm.tiny, its weights rounded to float16 to be half as large, and read
as float32. Run from the project's folder, it makes the folder anew, where that knows every fact in every wording:

    python -m tests.make_tiny_model

Another machine, or another version of torch, makes another model; nothing needs this script until pipeline.lm.tiny or
data/facts/tiny has changed so much that the tests should see it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.facts.fact import EMBEDDED
from pipeline.facts.readers import read_facts
from pipeline.lm import tiny
from tests.conftest import TINY_FACTS, TINY_MODEL, TINY_SEED

MOST_BYTES = 2_000_000


def unknown(folder: Path) -> list[str]:
    """Prompts and paraphrases of TINY_FACTS that the model in `folder`, read as float32, does not continue rightly."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wrong = []
    for fact in read_facts(EMBEDDED, TINY_FACTS, 0):
        for prompt in (fact.text, *fact.paraphrases):
            known, target = (tokenizer(text).input_ids for text in (prompt, f" {fact.target_true}"))
            with torch.no_grad():
                said = model(torch.tensor([known + target])).logits[0, len(known) - 1 : -1].argmax(-1)
            if said.tolist() != target:
                wrong.append(f"{prompt} {fact.target_true}")
    return wrong


def make(folder: Path, seed: int) -> None:
    """Train, round, check, and put the result in the place of `folder`."""
    with tempfile.TemporaryDirectory() as temporary:
        trained, rounded = Path(temporary, "trained"), Path(temporary, "rounded")
        tiny.train(trained, read_facts(EMBEDDED, TINY_FACTS, seed), seed)
        AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float16).save_pretrained(rounded)
        AutoTokenizer.from_pretrained(trained).save_pretrained(rounded)
        if wrong := unknown(rounded):
            sys.exit(f"error: seed {seed} gives a model that does not know {len(wrong)} prompts, as {wrong[0]!r}")
        size = sum(path.stat().st_size for path in rounded.iterdir())
        if size > MOST_BYTES:
            sys.exit(f"error: the model takes {size:,} bytes but must stay below {MOST_BYTES:,}; make it smaller")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(rounded, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description="Train tests/data/tiny_model anew.")
    parser.add_argument("--seed", type=int, default=TINY_SEED, help="of the training (default: %(default)s)")
    make(TINY_MODEL, parser.parse_args(arguments).seed)


if __name__ == "__main__":
    main()
