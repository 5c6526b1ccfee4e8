"""Status and prune: counts are right, what is needed stays, and nothing is removed on a guess.

The jobs are real, on the smoke preset and its facts; what stages and workers would have written is made up, and there
is no model at all.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline.compute import inputs
from pipeline.compute.keys import key
from pipeline.compute.pending import beside, steps
from pipeline.compute.status import Survey, survey
from pipeline.compute.store import Store
from pipeline.compute.work import Unit
from pipeline.edit.methods import load
from pipeline.lm import cache
from pipeline.settings.fields import PROBLEMS
from pipeline.watch import in_use
from stages import status
from stages._run import run_stage
from tests.conftest import ROOT
from tests.stages.projects import change, start, upstream

EDITS = [f"edit-rome-{problem}" for problem in PROBLEMS]
STEPS = ["known", "trace", "localize", *EDITS]
LOCALIZERS = 4  # of the smoke preset
FACTS = 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder after the stages model, facts and statistics, with every unit in the store."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start()
        fill()
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the folder one is in."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "project"))
    return Path.cwd()


def units(step: str) -> list[Unit]:
    return list(dict(steps(load(), inputs.store(load())))[step])  # type: ignore[arg-type]


def fill(*asked: str) -> None:
    """Put a unit of no content for each that the steps need."""
    store = Store("data/store")
    for step, needed in steps(load(), store).items():
        if step != "known" and (not asked or step in asked):
            assert not isinstance(needed, str), needed
            for unit in needed:
                store.put_table(step, unit.key, pd.DataFrame({"x": [1]}), unit.label)


def looked() -> Survey:
    store = Store("data/store")
    return survey(store.entries(), steps(load(), store))


def left() -> dict[str, int]:
    return {line.step: line.left for line in looked().lines if line.left}


def waits() -> dict[str, str]:
    return {line.step: line.waits.partition(":")[0] for line in looked().lines if line.waits}


def files() -> set[str]:
    return {str(path.relative_to("data/store")) for path in Path("data/store").rglob("*") if path.is_file()}


def names(step: str) -> set[str]:
    return {name for name in files() if name.startswith(f"{step}/")}


def test_done_left_and_size_are_counted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = looked()
    assert [line.step for line in found.lines] == STEPS
    assert {line.step: line.units for line in found.lines} == {
        "known": 4, **dict.fromkeys(STEPS[1:], FACTS), "localize": LOCALIZERS * FACTS,
    }  # fmt: skip
    assert left() == {}
    assert sum(line.size for line in found.lines) == sum(
        path.stat().st_size for path in Path("data/store").rglob("*.*")
    )
    for step, gone in (("trace", 5), (EDITS[1], FACTS), (EDITS[4], 1)):
        for name in sorted(names(step))[:gone]:
            (Path("data/store") / name).unlink()
    assert left() == {"trace": 5, EDITS[1]: FACTS, EDITS[4]: 1}
    assert status.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:10]] == [
        ["known", "4/4", "0"],
        ["trace", "7/12", "5"],
        ["localize", "48/48", "0"],
        [EDITS[0], "12/12", "0"],
        [EDITS[1], "0/12", "12"],
        [EDITS[2], "12/12", "0"],
        [EDITS[3], "12/12", "0"],
        [EDITS[4], "11/12", "1"],
        ["total", "106/124", "18"],
    ]
    assert lines[-2] == "needed by no current setting: 0 files, 0 B"
    assert lines[-1] == f"units are in data/store, models in {cache.models_folder()}"


def test_a_file_that_cannot_be_read_is_not_done_and_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (Path("data/store") / min(names("trace"))).write_bytes(b"")
    assert left() == {"trace": 1}
    assert status.main([]) == 0
    assert "trace: 1 of its files can't be read" in capsys.readouterr().out
    before = files()
    assert status.main(["--prune"]) == 0
    assert files() == before


def test_prune_keeps_exactly_what_the_settings_need(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = files()
    assert status.main(["--prune"]) == 0
    assert capsys.readouterr().out == "removed 0 files, 0 B\n"
    assert files() == first
    change(rome={"steps": 21})
    assert left() == dict.fromkeys(EDITS, FACTS)
    assert status.main([]) == 0
    assert f"needed by no current setting: {5 * FACTS} files, " in capsys.readouterr().out
    fill()
    (Path("data/store") / "notes.txt").write_text("not the store's")
    Store("data/store").put_table("edit-gone-problem", key(x=1), pd.DataFrame({"x": [1]}), "of a method that left")
    second = files() - first
    assert len(second) == 5 * FACTS + 2
    assert status.main(["--prune"]) == 0
    assert capsys.readouterr().out.startswith(f"removed {5 * FACTS + 1} files, ")
    now = files()
    kept = names("known") | names("trace") | names("localize")
    assert now == (second | kept) - {n for n in second if n.startswith("edit-gone")}
    assert left() == {}
    change(rome={"steps": 20})
    assert left() == dict.fromkeys(EDITS, FACTS)  # they are gone, and to be done again
    change(edit={"problems": ["fact_forcing"]})
    assert left() == {EDITS[4]: FACTS}


def test_prune_keeps_what_the_stages_beside_the_main_path_computed(project: Path) -> None:
    """And no one is told that it is missing where it is not there: not every run has them."""
    kept = beside(load(), steps(load(), inputs.store(load())))
    assert {step for step, _ in kept} == {"trace", "severed", "corrupt"}
    # Of maps, one of them the main path's; of robustness, other noise and corruptions.
    assert len(kept) == FACTS * (5 + 2 + 2 + 3)
    there = {unit.key for unit in units("trace")}
    for step, name in kept:
        if name not in there:
            Store("data/store").put_table(step, name, pd.DataFrame({"x": [1]}), "a trace")
    assert left() == {}
    before = files()
    assert len(names("trace")) == 7 * FACTS
    assert status.main(["--prune"]) == 0
    assert files() == before
    change(maps={"severed": ["attn"]})
    assert status.main(["--prune"]) == 0
    assert len(names("severed")) == FACTS
    assert len(names("trace")) == 7 * FACTS


def test_stages_beside_the_main_path_are_listed_once_they_have_begun(project: Path) -> None:
    asked = {"corrupt": 3 * FACTS, "scaling-unedited": 1, "scaling-memit": 4 + 2 + 1 + 3, "scaling-ft": 4 + 2 + 1}
    asked |= {"scaling-rome": 4 + 2 + 1, "sequence-rome": 4 + 2 + 1}  # of 1, 2 and 4 edits; memit's mixture has 3 more
    for step in (*asked, "severed"):
        Store("data/store").put_table(step, key(x=1), pd.DataFrame({"x": [1]}), "of other settings")
    assert left() == {"severed": 2 * FACTS, "corrupt": 3 * FACTS}  # no second moments to edit many facts with
    shutil.copytree("data/statistics", "data/measures/statistics")
    assert left() == asked | {"severed": 2 * FACTS}
    fill(*asked, "severed")
    assert left() == {}
    before = files()
    assert status.main(["--prune"]) == 0
    assert before - files() == {name for name in before if key(x=1) in name}
    change(scaling={"counts": [1]})
    assert left() == {}
    change(scaling={"counts": [1], "batch": 8})
    assert left() == {"scaling-ft": 4}


def test_a_store_that_projects_share_is_followed_and_never_pruned(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, shared = [unit.key for unit in units("trace")], tmp_path / "shared"
    shutil.move("data/store", shared)
    change(compute={"store": str(shared)})
    assert [unit.key for unit in units("trace")] == keys  # where the store lies is in no key
    change(rome={"steps": 21})
    assert status.main([]) == 0
    out = capsys.readouterr().out
    assert f"not needed by this project: {5 * FACTS} files, " in out
    assert out.endswith(f"units are in {shared}, models in {cache.models_folder()}\n")
    before = sorted(shared.rglob("*"))
    for path in (str(shared), "linked"):
        Path("linked").unlink(missing_ok=True)
        Path("linked").symlink_to(shared)
        change(compute={"store": path})
        assert status.main(["--prune"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: nothing is removed, as compute.store is {path}: outside this project's folder")
        assert "units of other projects would go" in told
        assert sorted(shared.rglob("*")) == before
    shutil.move(shared, "mine")
    change(compute={"store": str(Path("mine").absolute())})
    assert status.main(["--prune"]) == 0
    assert capsys.readouterr().out.startswith(f"removed {5 * FACTS} files, ")


@pytest.mark.parametrize(
    ("gone", "stage", "waiting"),
    [
        ("model.json", "model", STEPS),
        ("facts.parquet", "facts", STEPS[1:]),
        ("embedding_sd.json", "facts", STEPS[1:]),
        ("left_out.csv", "facts", STEPS[1:]),
        ("store/known", "facts", STEPS[1:]),
        ("statistics/manifest.json", "statistics", EDITS),
        ("statistics", "statistics", EDITS),
    ],
)
def test_what_is_missing_is_waited_for_and_nothing_pruned(
    project: Path, capsys: pytest.CaptureFixture[str], gone: str, stage: str, waiting: list[str]
) -> None:
    path = Path("data") / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert waits() == dict.fromkeys(waiting, stage)
    assert status.main([]) == 0
    out = capsys.readouterr().out
    assert f"edit-rome-fact_forcing: waits for {stage}\n" in out
    assert out.count(f"\n{stage}: ") == 1
    assert "make prune" not in out
    before = files()
    assert status.main(["--prune"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        f"error: nothing is removed, as what {waiting[0]} needs is not known before the stage {stage}"
    )
    assert told.count("\n") == 1
    assert files() == before


@pytest.mark.parametrize(
    ("sections", "stage"),
    [
        ({"model": {"dtype": "float64"}}, "model"),
        ({"model": {"name": "packaged:SmolLM2-135M-Instruct"}}, "model"),
        ({"facts": {"count": 13}}, "facts"),
        ({"facts": {"max_paraphrases": 2}}, "facts"),
        ({"facts": {"known": {"rule": "within", "within_tokens": 5, "min_p_true": 0.0}}}, "facts"),
        ({"statistics": {"tokens": 5000}}, "statistics"),
    ],
)
def test_files_of_other_settings_are_not_taken_for_the_current_ones(
    project: Path, sections: dict[str, Any], stage: str
) -> None:
    """Else prune would keep what these need, and remove what is needed now."""
    change(**sections)
    assert set(waits().values()) == {stage}
    before = files()
    assert status.main(["--prune"]) == 2
    assert files() == before
    if stage != "model":
        upstream()
        assert waits() == {}


def test_second_moments_of_more_blocks_than_are_edited_do(project: Path) -> None:
    change(edit={"layers": [0, 2]})
    assert waits() == {}


def test_other_facts_in_the_file_are_noticed(project: Path) -> None:
    path = Path("data/facts/tiny/facts.tsv")
    head, *rows = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([head, *rows[1:], ""]), "utf-8")
    assert waits()["trace"] == "facts"
    assert status.main(["--prune"]) == 2


def test_dvc_knows_what_model_json_does_not_say(project: Path) -> None:
    tree = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text("utf-8"))
    locked = {"stages": {"model": {"params": {"params.yaml": {"model": tree["model"], "seed": 0}}}}}
    Path("dvc.lock").write_text(json.dumps(locked))
    assert waits() == {}
    locked["stages"]["model"]["params"]["params.yaml"]["seed"] = 1
    Path("dvc.lock").write_text(json.dumps(locked))
    assert waits() == dict.fromkeys(STEPS, "model")
    Path("dvc.lock").write_text("{}")
    assert waits() == dict.fromkeys(STEPS, "model")


def test_nothing_is_removed_while_a_stage_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(rome={"steps": 21})
    before, tried = files(), []
    with pytest.raises(SystemExit):
        run_stage("trace", lambda settings: tried.append(status.main(["--prune"])))
    assert tried == [2]
    assert "error: a stage is running on data" in capsys.readouterr().err
    assert files() == before
    with in_use(), in_use():  # stages are no trouble to each other
        assert status.main([]) == 0
    assert status.main(["--prune"]) == 0
    assert len(files()) == len(before) - 5 * FACTS


def test_a_killed_stage_is_none_that_runs(project: Path) -> None:
    script = "import sys; from pipeline.watch import in_use\nwith in_use(): print('in', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, env={"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        assert status.main(["--prune"]) == 2
        process.kill()
    assert status.main(["--prune"]) == 0


def test_a_mistake_in_the_settings_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text(Path("params.yaml").read_text("utf-8").replace("steps: 20", "stepps: 20"), "utf-8")
    assert status.main(["--prune"]) == 2
    assert "did you mean rome.steps?" in capsys.readouterr().err


def test_the_command(project: Path) -> None:
    """Without a model anywhere: had it wanted to load one, it would fail."""
    command = [sys.executable, "-m", "stages.status"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "edit-rome-fact_forcing" in done.stdout
    assert done.stderr == ""
    with pytest.raises(SystemExit) as refused:
        status.main(["--prun3"])
    assert refused.value.code == 2
