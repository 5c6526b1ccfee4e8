"""The code in docs/ runs as it stands, but for the model's name and the fact."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from pipeline.facts.readers import read_facts
from pipeline.lm.plain import Batch, target_probabilities
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL


def test_the_library_s_page_runs(capsys: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    code, names = "\n".join(blocks), dict[str, Any]()
    known = read_facts("embedded", TINY_FACTS, 0)[0]  # the small model knows no capitals
    for there, here in {
        "gpt2": str(TINY_MODEL), "The capital of France is": known.text, "The capital of {} is": known.prompt,
        '"France"': f'"{known.subject}"', '"Paris"': f'"{known.target_true}"', '"Rome"': f'"{known.target_false}"',
    }.items():  # fmt: skip
        assert there in code
        code = code.replace(there, here)
    exec(compile(code, "docs/library.md", "exec"), names)
    assert names["effects"].shape == (names["prompt"].target_start, names["lm"].n_layers)
    assert np.isfinite(names["effects"]).all()
    assert names["edit"].status == "ok"
    assert capsys.readouterr().out
    lm, (first, *_) = names["lm"], names["request"].prompts

    def p_target() -> float:
        return float(target_probabilities(lm, Batch.of([first], lm.device))[0])

    before = p_target()
    with names["applied"](lm, names["edit"]):
        assert p_target() > 2 * before
    assert p_target() == before
    with names["applied"](lm, names["many"]):
        assert p_target() > before
    assert p_target() == before
