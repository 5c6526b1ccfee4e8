"""What a module depends on is found from its imports, and its version from what they do."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.closure import closure, code_version

FILES = {
    "__init__": "",
    "top": "import os\nfrom pipeline import left\nfrom pipeline.wing.right import thing\n",
    "left": "def f():\n    from pipeline.late import g\n    return g\n",
    "late": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline import typed\n"
    "else:\n    import pipeline.other\n",
    "typed": "x = 1\n",
    "other": "x = 1\n",
    "alone": "x = 1\n",
    "wing/__init__": "from .inner import y\n",
    "wing/right": "from . import beside\nfrom ..up import z\n",
    "wing/inner": "y = 1\n",
    "wing/beside": "",
    "up": "z = 1\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "pipeline" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_imports_are_followed_wherever_they_stand(project: Path) -> None:
    names = ("", ".late", ".left", ".other", ".top", ".up", ".wing", ".wing.beside", ".wing.inner", ".wing.right")
    assert list(closure("pipeline.top", root=project)) == [f"pipeline{name}" for name in names]
    assert list(closure("pipeline.alone", root=project)) == ["pipeline", "pipeline.alone"]


@pytest.mark.parametrize("name", ["late", "wing/inner", "up", "wing/beside"])
def test_a_change_anywhere_below_changes_the_version(project: Path, name: str) -> None:
    before = code_version("pipeline.top", root=project), code_version("pipeline.alone", root=project)
    path = project / "pipeline" / f"{name}.py"
    path.write_text(path.read_text() + "new = 1\n")
    assert code_version("pipeline.top", root=project) != before[0]
    assert code_version("pipeline.alone", root=project) == before[1]


def test_a_unit_s_version_covers_what_computes_it_and_no_other_wing() -> None:
    """Each of these was once in no key; an edit's does not depend on tracing, nor a trace's on editing."""
    trace, edit = closure("pipeline.compute.trace_job"), closure("pipeline.compute.edit_job", "pipeline.edit.rome")
    for found in (trace, edit):
        assert {"pipeline.facts.fact", "pipeline.lm.families", "pipeline.lm.noise", "pipeline.seeds"} <= set(found)
        assert not any(name.startswith(("pipeline.analysis", "pipeline.report")) for name in found)
    assert not any(name.startswith(("pipeline.edit", "pipeline.measure")) for name in trace)
    assert "pipeline.locate.tracing" in trace
    assert not any(name.startswith("pipeline.locate") for name in edit)
    assert {"pipeline.edit.value", "pipeline.edit.objective", "pipeline.measure.probabilities"} <= set(edit)


CODE = '''
"""What it is for."""

# A comment.
LIMIT = 3


class Thing:
    """A thing."""

    def size(self, n: int) -> int:
        """Its size."""
        return n + LIMIT  # why


async def wait() -> str:
    return """not a docstring"""
'''


@pytest.fixture
def version(tmp_path: Path) -> Any:
    """The version of a module of the given source."""
    (tmp_path / "pipeline").mkdir()

    def of(source: str) -> str:
        (tmp_path / "pipeline" / "one.py").write_text(source)
        return code_version("pipeline.one", root=tmp_path)

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What it is for."""', '"""Something else."""'),
        ('"""What it is for."""\n', ""),
        ("# A comment.", "# Another,\n# longer one."),
        ('"""Its size."""', '"""Its size in bytes."""'),
        ('    """A thing."""\n\n', ""),
        ("  # why", ""),
        ("LIMIT = 3", "LIMIT = (\n    3\n)"),
    ],
)
def test_comments_docstrings_and_layout_do_not_change_the_version(version: Any, old: str, new: str) -> None:
    assert old in CODE
    assert version(CODE.replace(old, new)) == version(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("n + LIMIT", "n - LIMIT"),
        ("n: int", "n: float"),
        ("not a docstring", "another text"),
        ("class Thing", "class Other"),
    ],
)
def test_changed_code_changes_the_version(version: Any, old: str, new: str) -> None:
    assert old in CODE
    assert version(CODE.replace(old, new)) != version(CODE)


def test_every_python_gives_a_source_the_same_version(version: Any) -> None:
    more = "\n\ndef told(*names: str, end=None, **kw: int) -> str:\n    return f'{names[0]!r:>{end}}' if end else ''\n"
    assert version(CODE + more) == "2f31fb400b34fa33"  # as found with 3.11, 3.12 and 3.13


def test_version_of_several_modules_depends_on_each_and_runs_none(version: Any) -> None:
    assert version("raise SystemExit('must not run')") != version("raise SystemExit('nor this')")
    assert code_version("pipeline.errors") != code_version("pipeline.errors", "pipeline.seeds")
    assert code_version("pipeline.errors", "pipeline.seeds") == code_version("pipeline.errors", "pipeline.seeds")
    assert code_version("pipeline.errors") != code_version("pipeline.seeds")


@pytest.mark.parametrize("name", ["pipeline.no_such_module", "sys", "no_such_module_at_all"])
def test_version_of_no_module_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no source for module"):
        code_version(name)
