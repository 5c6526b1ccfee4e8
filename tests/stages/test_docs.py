"""The code in docs/ runs as it stands, but for the model's name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.conftest import ROOT, TINY_MODEL


def test_the_library_s_page_runs(capsys: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    code = "\n".join(blocks)
    names: dict[str, Any] = {}
    exec(compile(code.replace('load("gpt2")', f'load("{TINY_MODEL}")'), "docs/library.md", "exec"), names)
    assert names["effects"].shape == (names["prompt"].target_start, names["lm"].n_layers)
    assert np.isfinite(names["effects"]).all()
    assert names["edit"].status == "ok"
    said = capsys.readouterr().out.strip()
    assert said
    assert f" {names['fact'].target_false}".startswith(f" {said}")
