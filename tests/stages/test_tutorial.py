"""Every command of docs/tutorial.md, one after the other, in a clone; the packaged model is the trained one here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline.edit.methods import load
from tests.conftest import ROOT
from tests.stages.clones import Clone, ran, to_do

PAGE = ROOT / "docs" / "tutorial.md"
# `make` is told that .venv, which is that of these tests, needs nothing. The model here knows no sights.
HERE = {
    "make ": "make -o .venv/.ready ",
    "packaged:SmolLM2-135M-Instruct": "trained:tiny",
    "-e 's|^  problems": "-e 's|^    rule: greedy |    rule: none |' -e 's|^  problems",
}


def commands() -> list[str]:
    """The blocks of commands, in their order."""
    return re.findall(r"```console\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def test_the_page_has_its_blocks_and_what_it_names_is_there() -> None:
    blocks = commands()
    assert len(blocks) == 7
    text = PAGE.read_text("utf-8")
    for name in re.findall(r"\]\((\w+\.md)\)", text):
        assert (PAGE.parent / name).is_file()
    for preset in re.findall(r"PRESET=(\w[\w-]*)|presets/([\w-]+)\.yaml", text):
        assert (ROOT / "presets" / f"{''.join(preset)}.yaml").is_file()


def test_each_setting_that_the_page_changes_is_one_line_of_the_preset(tmp_path: Path) -> None:
    """The page's sed expressions, on the preset alone: each changes a line, and the settings are sound."""
    lines = (ROOT / "presets" / "smoke.yaml").read_text("utf-8").splitlines()
    found = re.findall(r"s([|/])\^(.*?)\1(.*?)\1", "".join(commands()))
    assert len(found) == 5
    for _, before, after in found:
        places = [place for place, line in enumerate(lines) if re.match(before, line)]
        assert len(places) == 1, before
        lines[places[0]] = re.sub(f"^{before}", after, lines[places[0]])
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines), "utf-8")
    params = load(path)
    assert params.model.name == "packaged:SmolLM2-135M-Instruct"
    assert (params.facts.path, params.facts.count, params.facts.known.rule) == ("data/facts/mine", None, "greedy")
    assert params.edit.problems == ("error_injection",)


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(clone: Clone) -> None:
    (clone.root / ".venv").symlink_to(Path(sys.executable).parent.parent)
    said = []
    for block in commands():
        for there, here in HERE.items():
            block = block.replace(there, here)
        assert "packaged" not in block
        said.append(clone.command("bash", "-euo", "pipefail", "-c", block))
    first, _, changed, compared, _, own, kept = said
    assert ran(first) >= {"params"}
    assert to_do(changed)["trace"] == 2
    assert "reports/compare.html" in compared
    assert (clone.root / "reports" / "compare.html").stat().st_size > 50_000
    assert to_do(own)["edit-rome-error_injection"] == 3
    ids = {"sight-Mount-Fuji", "sight-the-Colosseum", "sight-the-Great-Sphinx"}
    assert set(re.findall(r"sight-[\w-]+", kept)) == ids
    assert set(pd.read_parquet(clone.root / "data" / "scores.parquet")["fact_id"]) == ids
    assert "sight-Mount-Fuji" in (clone.root / "reports" / "report.html").read_text("utf-8")
    assert YAML(typ="safe").load((clone.root / "params.yaml").read_text("utf-8"))["facts"]["path"] == "data/facts/mine"
