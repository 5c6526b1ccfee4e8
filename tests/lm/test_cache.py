"""Models made on this machine: made once for all who ask, known by name alone, made again where they are damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.compute import fetch, inputs
from pipeline.compute.known_job import KnownJob
from pipeline.edit.methods import load as load_params
from pipeline.errors import UserError
from pipeline.facts.readers import read_facts
from pipeline.lm import cache
from pipeline.lm.load import load
from stages import model
from tests.conftest import ROOT, TINY_FACTS, TINY_SEED
from tests.lm.families import random_model


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


def save(folder: Path) -> None:
    lm = random_model("gpt2", torch.float32)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    (folder.parent / "beside.txt").write_text("of the making")


def test_the_variable_names_the_folder_and_without_it_the_user_s_cache_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.VARIABLE, "~/mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.models_folder() == tmp_path / "mine"
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.models_folder().is_relative_to(tmp_path)
    assert "localize-and-edit" in cache.models_folder().parts
    assert "LOCALIZE_EDIT_MODELS" in (ROOT / "README.md").read_text("utf-8")


def test_a_model_is_made_once_and_again_where_it_is_damaged(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        save(folder)

    for _ in range(2):
        assert cache.made("small", make) == "cached:small"
    assert len(made) == 1
    assert [path.name for path in models.iterdir() if path.is_dir()] == ["small"]
    whole = load("cached:small", device="cpu").fingerprint
    (models / "small" / "model.safetensors").write_bytes(b"cut")
    (models / ".small-killed").mkdir()  # as a process leaves it that is killed
    cache.made("small", make)
    assert "is not as it was made; it is made again" in capsys.readouterr().err
    assert load("cached:small", device="cpu").fingerprint == whole
    assert len(made) == 2
    assert [path.name for path in models.iterdir() if path.is_dir()] == ["small"]


def test_what_fails_leaves_nothing(models: Path) -> None:
    def fail(folder: Path) -> None:
        save(folder)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        cache.made("small", fail)
    assert [path.name for path in models.iterdir() if path.is_dir()] == []
    with pytest.raises(UserError, match=r"models/small is not there.*LOCALIZE_EDIT_MODELS.*cluster"):
        load("cached:small")


def test_a_folder_that_can_t_be(models: Path) -> None:
    models.write_text("a file")
    with pytest.raises(UserError, match=r"models/small could not be written"):
        cache.made("small", save)


MAKE = """
import sys, time
from pathlib import Path
from pipeline.lm import cache

def make(folder):
    folder.mkdir()
    time.sleep(1.5)
    (folder / "config.json").write_text("{}")
    with open("made", "a") as file:
        file.write("once ")

print("ready", flush=True)
sys.stdin.readline()
print(cache.made("slow", make))
"""


def test_of_several_processes_one_makes_it(models: Path, tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=120) for process in running]
    assert [out for out, _ in ends] == ["cached:slow\n"] * 3
    assert (tmp_path / "made").read_text() == "once "
    assert sum("another process is making slow; waiting for it" in told for _, told in ends) == 2


@pytest.mark.slow
def test_where_the_models_are_is_in_no_table_and_no_key(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage `model` with the folder at two places: the same bytes of data/model.json, and the same keys."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / tiny_folder.name).symlink_to(tiny_folder)
    (tmp_path / "project" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    params = load_params(ROOT / "presets" / "smoke.yaml")
    monkeypatch.setattr(fetch.ensure, "__defaults__", (TINY_FACTS,))  # not below the folder one is in
    assert params.seed == TINY_SEED
    contents = []
    for place in (tiny_folder.parent, moved):
        monkeypatch.setenv(cache.VARIABLE, str(place))
        model.main(params)
        contents.append(Path("data/model.json").read_bytes())
        record: dict[str, Any] = json.loads(contents[-1])
        assert record["source"] == f"cached:{tiny_folder.name}"
    assert contents[0] == contents[1]
    assert str(tiny_folder.parent).encode() not in contents[0]
    described = inputs.model(params)
    facts = tuple(read_facts("embedded", TINY_FACTS, TINY_SEED))
    here, there = (KnownJob(params, each, facts).units() for each in (described, described | {"source": "anywhere"}))
    assert [unit.key for unit in here] == [unit.key for unit in there]
