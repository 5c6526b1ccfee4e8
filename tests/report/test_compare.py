"""Two runs on one page: what it says of made-up runs and of the committed one, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.report import compare
from pipeline.report.depth import rewrite_by_depth, trace_by_depth
from pipeline.report.finished import differing, labels, read_finished
from tests.conftest import ROOT
from tests.report.made import NASTY, Page

DEFAULT = ROOT / "reports" / "default-run"
Regrets = Mapping[str, tuple[float, float, float]]
BOTH: Regrets = {"error_injection": (0.1, 0.05, 0.15), "fact_erasure": (0.02, -0.01, 0.05)}


def change(folder: Path, name: str, **columns: Any) -> None:
    table = pd.read_csv(folder / name).assign(**columns)
    table.to_csv(folder / name, index=False)


def edit_manifest(folder: Path, section: str, **keys: Any) -> None:
    path = folder / "manifest.json"
    tree = json.loads(path.read_text("utf-8"))
    place = tree
    for part in section.split("."):
        place = place[part]
    place.update(keys)
    path.write_text(json.dumps(tree))


def run(folder: Path, model: str, blocks: int, regrets: Regrets, facts: int = 50) -> Path:
    """A folder of reports of a made-up run: the committed one with other numbers, and every second block."""
    shutil.copytree(DEFAULT, folder, ignore=shutil.ignore_patterns("figures", "*.html", "*.png", "*.md"))
    edit_manifest(folder, "model", name=f"packaged:{model}", layers=blocks)
    edit_manifest(folder, "params.model", name=f"packaged:{model}")
    edit_manifest(folder, "params.edit", layers=list(range(0, blocks, 2)))
    choices = pd.read_csv(folder / "layers.csv")
    choices = choices[choices["problem"].isin(list(regrets))].assign(n_facts=facts)
    for problem, values in regrets.items():
        at = (choices["problem"] == problem) & (choices["choice"] == "fixed")
        choices.loc[at, ["regret", "regret_low", "regret_high"]] = values
    choices.to_csv(folder / "layers.csv", index=False)
    for name in ("rewrite_by_layer.csv", "trace_by_layer.csv"):
        table = pd.read_csv(folder / name)
        table[(table["layer"] < blocks) & (table["layer"] % 2 == 0)].assign(n=facts).to_csv(folder / name, index=False)
    change(folder, "regressions.csv", n_facts=facts)
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that agree for one problem and are both unsure of another."""
    other: Regrets = {"error_injection": (0.2, 0.1, 0.3), "fact_erasure": (0.03, 0.01, 0.05)}
    return run(tmp_path / "a", "First", 30, BOTH), run(tmp_path / "b", "Second", 18, other)


def told(folders: tuple[Path, Path]) -> str:
    one, other = (read_finished(folder) for folder in folders)
    return compare.sentence(compare.regrets(one, other), labels(one, other), one.confidence)


def test_the_sentence_says_for_which_problems_the_conclusion_holds(two: tuple[Path, Path]) -> None:
    assert told(two) == (
        "The conclusion holds in both runs for 1 of 2 problems: what editing at the traced layer loses against one "
        "fixed layer, in points of rewrite score in First and in Second (95% intervals in brackets), is of one sign "
        "and shown in both for error injection, 10.0 (5.0 to 15.0) and 20.0 (10.0 to 30.0); of one sign and compatible "
        "but not shown in both for fact erasure, 2.0 (-1.0 to 5.0) and 3.0 (1.0 to 5.0)."
    )


@pytest.mark.parametrize(
    ("regret", "facts", "lead"),
    [
        ((0.12, 0.1, 0.2), 50, "The conclusion holds in both runs: "),
        ((-0.1, -0.2, -0.01), 50, "The conclusion of one run does not hold in the other: "),
        ((0.5, 0.4, 0.6), 50, "The conclusion of one run does not hold in the other: "),
        ((0.1, -0.2, 0.3), 50, "Whether the conclusion holds in both runs is not settled: "),
        ((-0.1, -0.2, -0.01), 10, "Whether the conclusion holds in both runs is not settled: "),
    ],
)
def test_it_begins_with_what_it_comes_to(
    regret: tuple[float, float, float], facts: int, lead: str, tmp_path: Path
) -> None:
    one = run(tmp_path / "a", "First", 30, {"fact_erasure": (0.1, 0.05, 0.15)})
    found = told((one, run(tmp_path / "b", "Second", 18, {"fact_erasure": regret}, facts)))
    assert found.startswith(lead)
    assert ("none below 40 facts" in found) == (facts < 40)


def test_what_each_interval_allows(two: tuple[Path, Path]) -> None:
    one, other = map(read_finished, two)
    assert compare.allowed(compare.regrets(one, other), ("First", "Second"))[1] == (
        "**fact erasure, ROME**: First, of 50 facts, allows anything from a gain of 1.0 to a loss of 5.0 points; "
        "Second, of 50 facts, allows anything from a loss of 1.0 to a loss of 5.0 points."
    )
    change(two[0], "layers.csv", n_facts=10)
    of_few = compare.allowed(compare.regrets(read_finished(two[0]), other), ("First", "Second"))
    assert "First, of 10 facts, gives no interval; Second" in of_few[0]


def test_runs_with_nothing_in_common_say_so(tmp_path: Path) -> None:
    one = run(tmp_path / "a", "First", 30, {"error_injection": (0.1, 0.05, 0.15)})
    other = run(tmp_path / "b", "Second", 18, {"fact_erasure": (0.1, 0.05, 0.15)})
    assert "nothing is comparable" in told((one, other))


def test_blocks_are_placed_by_relative_depth(two: tuple[Path, Path]) -> None:
    one, other = map(read_finished, two)
    for plot in (rewrite_by_depth(one, other, ("First", "Second")), trace_by_depth(one, other, ("First", "Second"))):
        assert plot is not None
        assert plot.data is not None
        deepest = plot.data.groupby("run")["depth"].max()
        assert deepest.to_dict() == pytest.approx({"First": 28 / 30, "Second": 16 / 18})
        drawn = [np.asarray(line.get_xdata(), float) for ax in plot.figure.axes for line in ax.get_lines()]
        assert max(line.max() for line in drawn if len(line)) == pytest.approx(28 / 30)
        assert "50 facts of First and 50 facts of Second" in plot.caption


def test_only_what_differs_is_listed(two: tuple[Path, Path]) -> None:
    one, other = map(read_finished, two)
    found = {name: (here, there) for name, here, there in differing(one.settings, other.settings)}
    assert set(found) == {"model.name", "edit.layers"}
    assert found["model.name"] == ('"packaged:First"', '"packaged:Second"')
    assert differing({"a": "1"}, {"b": "2"}) == [("a", "1", "–"), ("b", "–", "2")]
    assert not [name for name in one.settings if name.startswith(("report", "table", "scaling", "compute.workers"))]


def test_the_page_is_whole_and_loads_nothing(two: tuple[Path, Path], tmp_path: Path) -> None:
    edit_manifest(two[1], "model", name=f"packaged:{NASTY}")
    path = tmp_path / "reports" / "compare.html"
    assert compare.main([*map(str, two), "--out", str(path)]) == 0
    text = path.read_text("utf-8")
    page = Page(text)
    assert (page.wrong, page.open) == ([], [])
    assert NASTY not in text
    assert text.count("<script") == 1
    assert f"First beside {NASTY}" in page.text
    links = [attributes[name] or "" for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert len([link for link in links if link.startswith("data:image/")]) == 2
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert "Editing at the traced layer (ROME) loses 10.0 points" in page.text
    assert "Editing at the traced layer (ROME) loses 20.0 points" in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_the_committed_run_beside_another(tmp_path: Path) -> None:
    other = run(tmp_path / "second", "Second", 18, BOTH)
    path = tmp_path / "compare.html"
    assert compare.main([str(DEFAULT), str(other), "--out", str(path)]) == 0
    text = Page(path.read_text("utf-8")).text
    assert "SmolLM2-135M-Instruct beside Second" in text
    assert "SmolLM2-135M-Instruct, of 10 facts, gives no interval" in text
    first = pd.read_csv(DEFAULT / "regressions.csv").iloc[0]
    assert f"{first['r2_layer']:.3f}" in text


def test_one_model_twice_is_told_apart_by_folder(tmp_path: Path) -> None:
    one, other = (read_finished(run(tmp_path / name, "Model", 18, BOTH)) for name in "ab")
    assert labels(one, other) == ("Model (a)", "Model (b)")
    inner = read_finished(run(tmp_path / "c" / "a", "Model", 18, BOTH))
    assert labels(one, inner) == (f"Model ({tmp_path / 'a'})", f"Model ({tmp_path / 'c' / 'a'})")


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert compare.main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_what_is_no_run_is_refused_in_a_sentence(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, two)
    assert "make compare A=" in refused(a, "", capsys=capsys)
    assert "is not a folder" in refused(a, str(tmp_path / "nowhere"), capsys=capsys)
    assert "are one folder" in refused(a, f"{a}/../a", capsys=capsys)
    older = shutil.copytree(b, tmp_path / "older")
    (older / "layers.csv").unlink()
    told = refused(a, str(older), capsys=capsys)
    assert f"{older} has no layers.csv; a folder with the reports of a whole run" in told
    (two[1] / "trace_by_layer.csv").write_text("module,window\n")
    assert "trace_by_layer.csv: has no column line" in refused(a, b, capsys=capsys)
    (two[1] / "trace_by_layer.csv").unlink()
    (two[1] / "manifest.json").unlink()
    assert "has no manifest.json and no trace_by_layer.csv" in refused(a, b, capsys=capsys)


def test_runs_of_other_versions_or_confidence_are_refused(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = map(str, two)
    edit_manifest(two[1], "params.regressions", confidence=0.9)
    found = refused(a, b, capsys=capsys)
    assert "regressions.confidence is 0.95 in" in found
    assert "but 0.9 in" in found
    (two[1] / "manifest.json").write_text(json.dumps({"model": {"name": "x"}, "params": {}, "versions": {}}))
    assert "manifest.json: lacks 'layers'" in refused(a, b, capsys=capsys)
    (two[1] / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="must hold a JSON object"):
        read_finished(two[1])
