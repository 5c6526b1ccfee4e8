"""What can be done with each model family, found by trying it on small random models: README's table.

`python -m tests.lm.abilities` writes the table between the markers; a test compares it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.edit.rome import Rome
from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.locate.tracing import FactTrace
from pipeline.measure.probabilities import Measurement, questions
from tests.conftest import ROOT
from tests.edit.test_rome import SETTINGS, request_for, resources_for
from tests.lm.families import CONFIGS, random_model
from tests.measure.test_probabilities import FACT

README = ROOT / "README.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"
SHOWN = {"falcon-alibi": "falcon with ALiBi"}


def tracing(lm: LanguageModel) -> str:
    """fast, plain or no."""
    noise = NoiseTable(0, "a", 0.5, 2, lm.embedding_width)
    fact = FactTrace(lm, request_for(lm).prompts[0], noise, 2)
    plain = fact.plain("mlp", 2).restored
    if not np.ptp(plain) > 1e-6 * plain.max():
        return "no"
    fast = lm.fast and np.abs(fact.fast("mlp", 2).restored - plain).max() < 1e-5 * plain.max()
    return "fast" if fast else "plain"


def rome(lm: LanguageModel) -> str:
    """fast, plain or no."""
    layer, settings = [1], replace(SETTINGS, steps=4)
    measurement = Measurement(lm, questions(lm, FACT, "Oslo", "Paris", 0), None)
    try:
        (slow,) = Rome(settings, resources_for(lm, "plain")).edit(lm, request_for(lm), layer)
    except UserError as error:
        return "no, as there is no single down-projection" if "no single down-projection" in str(error) else "no"
    after, before = measurement.plain(slow), measurement.plain(None)
    if slow.status != "ok" or not after[0, 0] > before[0, 0]:
        return "no"
    if lm.fast:
        edits = Rome(settings, resources_for(lm)).edit(lm, request_for(lm), layer)
        if np.allclose(measurement.after(edits)[0], after, rtol=1e-2, atol=0):
            return "fast"
    return "plain"


def table() -> str:
    """Markdown, families that can do the same in one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for family in sorted(CONFIGS):
        lm = random_model(family)
        rows.setdefault((tracing(lm), rome(lm)), []).append(SHOWN.get(family, family))
    lines = [f"| {', '.join(names)} | {traced} | {edited} |" for (traced, edited), names in sorted(rows.items())]
    return "\n".join(["| families (`model_type`) | tracing | ROME |", "|---|---|---|", *lines])


def with_table(text: str, made: str) -> str:
    """README's text with the table between the markers; ValueError where they are missing."""
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:start]}\n{made}\n{text[end:]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8"), table()), encoding="utf-8")
