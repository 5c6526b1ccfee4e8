"""A `python` that is not the one of .venv, as when dvc is called by its path: one sentence, whatever the stage."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import stages
from tests.conftest import ROOT

INIT = ROOT / "stages" / "__init__.py"
MODULES = sorted(path.stem for path in INIT.parent.glob("*.py") if not path.stem.startswith("_"))
TOLD = "; run `make repro`, or `. .venv/bin/activate` before dvc\n"


def stage(*words: str) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_a_python_without_packages(module: str) -> None:
    # -S: without what is installed beside the standard library.
    code, out, told = stage(sys.executable, "-S", "-m", f"stages.{module}")
    assert (code, out) == (2, "")
    assert told == f"error: {sys.executable} lacks the package numpy{TOLD}"


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    assert stages.refusal() == f"error: {sys.executable} is older than 3.11{TOLD}"
    monkeypatch.undo()
    assert stages.refusal() == ""


def test_what_runs_first_is_known_to_old_pythons() -> None:
    """To those of 2008 even: the words are there, nothing newer, and no import but of the standard library."""
    source = INIT.read_bytes()
    assert source.isascii()
    for node in ast.walk(ast.parse(source)):
        assert not isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.NamedExpr | ast.Match | ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None
            assert not any(argument.annotation for argument in node.args.args)
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= sys.stdlib_module_names
        if isinstance(node, ast.ImportFrom):
            assert str(node.module).split(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("name", ["python2", "python3.6", "python3.8", "python3.9"])
def test_an_old_python_that_is_here(name: str) -> None:
    found = [Path(folder, name) for folder in os.environ["PATH"].split(os.pathsep) if Path(folder, name).is_file()]
    if not found or stage(str(found[0]), "-c", "")[0] != 0:
        pytest.skip(f"there is no {name}")
    code, out, told = stage(str(found[0]), "-m", "stages.params")
    assert (code, out) == (2, "")
    assert told.endswith(f" is older than 3.11{TOLD}")
    assert told.count("\n") == 1
