"""The house: every file has one subject, says which, and stands where the README says; imports run one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

FOLDERS = ("pipeline", "stages", "tests", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = [path for path in FILES if path.is_relative_to(ROOT / "pipeline") and path.name != "__init__.py"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_has_one_subject_and_says_which(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") < (60 if path.is_relative_to(ROOT / "stages") else 400)
    assert len(ast.get_docstring(ast.parse(text)) or "") > 20


def test_imports_run_one_way() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


def test_the_readme_s_tree_is_the_house() -> None:
    tree = (ROOT / "README.md").read_text("utf-8").split("## Find your way")[1].split("## ")[0]
    told = set(re.findall(r"\b\w+\.py\b", tree))
    assert {path.name for path in MODULES} - told == set()
    assert told - {path.name for path in FILES} == set()
    wings = {path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").exists()}
    assert [wing for wing in sorted(wings) if f"      {wing}/" not in tree] == []


def test_tests_mirror_the_wings() -> None:
    wings = {path.parent.name for path in MODULES if path.parent.name != "pipeline"}
    assert [wing for wing in sorted(wings) if not list((ROOT / "tests" / wing).glob("test_*.py"))] == []


def test_the_version_to_cite_is_the_package_s_and_in_the_changelog() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    cited = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (cited["version"], cited["license"]) == (package["version"], package["license"])
    released = f"## [{package['version']}] - {cited['date-released']}"
    assert released in (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
    assert [reference["year"] for reference in cited["references"]] == [2023, 2022, 2023]
