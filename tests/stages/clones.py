"""A temporary clone in which the smoke preset has run through DVC, for tests that go on from there.

One clone is run for the whole session; tests that change something work on copies of it, so that none sees another's
doings.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from pipeline.edit.methods import load
from pipeline.lm import cache
from pipeline.settings.fields import PROBLEMS
from pipeline.settings.params import Params
from pipeline.tables import read

ROOT = Path(__file__).resolve().parents[2]
LATE = "fact_forcing"  # the problem that is added to the list after the first run


@dataclass(frozen=True)
class Clone:
    """A copy of the project with a Git and a DVC of its own. models: the folder of models that it is told to use."""

    root: Path
    models: Path

    @property
    def environment(self) -> dict[str, str]:
        return environment() | {cache.VARIABLE: str(self.models)}

    def command(self, *words: str, fails: bool = False) -> str:
        """Run a command as a user would; what it prints, standard error included."""
        done = subprocess.run(
            words, cwd=self.root, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=400, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def repro(self, *targets: str) -> str:
        return self.command("dvc", "repro", *targets)

    @property
    def params(self) -> Params:
        return load(self.root / "params.yaml")

    def change(self, section: str, **keys: Any) -> None:
        """Set keys of a section of params.yaml."""
        path, yaml = self.root / "params.yaml", YAML()
        tree = yaml.load(path.read_text("utf-8"))
        tree.setdefault(section, {}).update(keys)
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(tree, file)

    def read(self, table: str) -> pd.DataFrame:
        return read(self.root / "data" / f"{table}.parquet")

    def results(self) -> dict[str, bytes]:
        """Content of every table, CSV, metric and statistic, by its path."""
        data = self.root / "data"
        paths = [*data.glob("*.parquet"), *data.glob("edits/*"), *data.glob("statistics/*"), *data.glob("*.json")]
        paths += [*self.root.glob("reports/*.csv"), self.root / "reports" / "metrics.json"]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in sorted(paths)}

    def units(self, step: str) -> dict[str, int]:
        """Files of a step's stored units, and when they were written."""
        return {path.name: path.stat().st_mtime_ns for path in (self.root / "data" / "store" / step).glob("*.parquet")}


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of the files that are not the same in both; pytest would spell out how megabytes differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def environment() -> dict[str, str]:
    """An environment in which `python` and `dvc` are those that run these tests."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "PYTEST_"))}
    found["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"
    for name in ("AUTHOR", "COMMITTER"):
        found |= {f"GIT_{name}_NAME": "test", f"GIT_{name}_EMAIL": "test@example.org"}
    return found


def ran(output: str) -> set[str]:
    """Names of the stages that `dvc repro` ran."""
    return set(re.findall(r"^Running stage '([^']+)'", output, re.MULTILINE))


def to_do(output: str) -> dict[str, int]:
    """How many units each step computed, by its progress lines; a step whose units were all there has no entry."""
    found = re.findall(r"^(known|trace|localize|edit-[a-z_-]+): (\d+) .* to do$", output, re.MULTILINE)
    return {step: int(count) for step, count in found}


@dataclass(frozen=True)
class Smoke:
    """The clone after its three runs, and what they printed.

    cpu: seconds of CPU time that the first two took on two cores; unit: those of importing torch and transformers.
    """

    clone: Clone
    first: str
    added: str
    again: str
    cpu: float
    unit: float


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def two_cores() -> Iterator[None]:
    """Two cores at the most for what is started here: as many workers are, however many cores the machine has."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_of_them)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


@pytest.fixture(scope="session")
def smoke(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smoke]:
    # Trained already: half a minute that need not be spent twice. pipeline/lm/tiny.py has tests of its own.
    clone = Clone(tmp_path_factory.mktemp("repro") / "clone", tiny_folder.parent)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in sorted(set(listed.split("\0")) - {"", "dvc.lock"}):
        if (ROOT / name).is_file():  # a file may be deleted and that not committed yet
            (clone.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone.root / name)
    preset = clone.root / "presets" / "smoke.yaml"
    shutil.copy(preset, clone.root / "params.yaml")
    clone.command("git", "init", "--quiet")
    clone.command("git", "add", "--all")
    clone.command("git", "commit", "--quiet", "--message", "as it is")
    with two_cores():
        start = cpu_seconds()
        clone.command("python", "-c", "import torch, transformers.modeling_utils")
        unit = cpu_seconds() - start
        clone.change("edit", problems=[problem for problem in PROBLEMS if problem != LATE])
        first = clone.repro()
        shutil.copy(preset, clone.root / "params.yaml")
        added = clone.repro()
        cpu = cpu_seconds() - start - unit
    yield Smoke(clone, first, added, clone.repro(), cpu, unit)
    shutil.rmtree(clone.root, ignore_errors=True)


@pytest.fixture
def clone(smoke: Smoke, tmp_path: Path) -> Iterator[Clone]:
    """A copy of the run clone, which a test may change."""
    root = Path(shutil.copytree(smoke.clone.root, tmp_path / "clone", symlinks=True))
    copy = Clone(root, smoke.clone.models)
    yield copy
    shutil.rmtree(copy.root, ignore_errors=True)
