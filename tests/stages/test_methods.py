"""An editing method is one file and one entry: everything else follows, from params.yaml to the report."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pipeline.settings.fields import PROBLEMS
from tests.stages.clones import Clone, ran, to_do

FILE = '''"""An edit that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.edit.protocol import Edit, EditRequest, Method, Resources
from pipeline.lm.model import LanguageModel
from pipeline.settings.fields import Weight


@dataclass(frozen=True, kw_only=True)
class NoopSettings:
    """The `noop` section."""

    loss: Weight


class Noop:
    window = 1

    def __init__(self, settings: NoopSettings, resources: Resources):
        self.settings = settings

    def edit(
        self, lm: LanguageModel, request: EditRequest, layers: Sequence[int], memory: int | None = None
    ) -> list[Edit]:
        return [Edit(layer, (), 0.0, self.settings.loss, 0) for layer in layers]


METHOD = Method(name="noop", settings=NoopSettings, editor=Noop, moments=False)
'''


def add_noop(clone: Clone) -> None:
    """One file and one entry."""
    (clone.root / "pipeline" / "edit" / "noop.py").write_text(FILE)
    path = clone.root / "pipeline" / "edit" / "methods.py"
    text = path.read_text()
    assert text.count("rome.METHOD,") == text.count("from pipeline.edit import ") == 1
    text = text.replace("rome.METHOD,", "rome.METHOD, noop.METHOD,")
    path.write_text(text.replace("from pipeline.edit import ", "from pipeline.edit import noop, "))


@pytest.mark.slow
def test_a_new_method_is_one_file_and_one_entry(clone: Clone) -> None:
    rome = {problem: clone.read(f"edits/rome-{problem}") for problem in PROBLEMS}
    add_noop(clone)
    clone.change("edit", methods=["rome", "noop"])
    output = clone.command("dvc", "repro", fails=True)
    assert "error: params.yaml: the section noop is missing; add it with the keys loss, by_problem" in output
    clone.change("noop", loss=0.5, by_problem={"fact_erasure": {"loss": 0.25}})
    output = clone.repro()
    steps = {f"edit-noop-{problem}" for problem in PROBLEMS}
    assert {f"edit@noop-{problem}" for problem in PROBLEMS} | {"scores", "regressions", "report"} <= ran(output)
    assert set(to_do(output)) == steps  # not one edit by ROME, nor a trace, was computed again
    assert all(rome[problem].equals(clone.read(f"edits/rome-{problem}")) for problem in PROBLEMS)

    for problem in PROBLEMS:
        edits = clone.read(f"edits/noop-{problem}").query("status == 'ok'")
        assert len(edits)
        assert np.array_equal(edits["p_pre"], edits["p_post"])
        assert set(edits["loss"]) == {0.25 if problem == "fact_erasure" else 0.5}
    scores = clone.read("scores")
    done = scores[(scores["method"] == "noop") & scores["rewrite"].notna()]
    assert (done["rewrite"] == 0).all()
    assert (done["neighborhood"] == 1).all()
    regressions = pd.read_csv(clone.root / "reports" / "regressions.csv")
    assert set(regressions["method"]) == {"rome", "noop"}
    metrics = json.loads((clone.root / "reports" / "metrics.json").read_text())
    assert {"rome", "noop"} <= set(metrics)
    assert "NOOP" in (clone.root / "reports" / "report.html").read_text()
    status = clone.command("python", "-m", "stages.status")
    assert all(step in status for step in steps)
    assert " 0 " in status.splitlines()[1]

    clone.change("noop", loss=0.75)
    assert set(to_do(clone.repro())) == steps - {"edit-noop-fact_erasure"}  # which has a loss of its own
    assert ran(clone.repro()) == {"params"}
