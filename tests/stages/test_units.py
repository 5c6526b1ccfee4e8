"""Units carried to another machine: the run there goes on from them."""

import shutil
from pathlib import Path

import pytest

from tests.stages.clones import Clone, differing, to_do

pytestmark = pytest.mark.slow


def test_a_run_elsewhere_computes_nothing_that_was_brought_along(clone: Clone, tmp_path: Path) -> None:
    file = str(tmp_path / "units.parquet")
    told = clone.command("make", "-o", ".venv/.ready", "export-units", f"FILE={file}")
    assert f"{file} holds" in told
    wanted, took = clone.results(), timings(clone)
    assert len(took) > 5
    for left in ("data/store", "data/timings", "data/edits", "data/statistics", "reports", ".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(clone.root / left, ignore_errors=True)
    for path in [*(clone.root / "data").glob("*.parquet"), *(clone.root / "data").glob("*.json")]:
        path.unlink()
    (clone.root / "dvc.lock").unlink()
    told = clone.command("make", "-o", ".venv/.ready", "import-units", f"FILE={file}")
    assert "are new in data/store" in told
    assert to_do(clone.repro()) == {}
    assert differing(clone.results(), wanted) == []
    assert {name: timings(clone)[name] for name in ("trace", "edit-rome-error_injection")} == {
        name: took[name] for name in ("trace", "edit-rome-error_injection")
    }


def timings(clone: Clone) -> dict[str, bytes]:
    """Stage to what is written down of what it took to compute its numbers."""
    return {path.stem: path.read_bytes() for path in (clone.root / "data/timings").glob("*.json")}


def test_a_wrong_file_is_a_sentence(clone: Clone) -> None:
    told = clone.command("python", "-m", "stages.units", "import", "params.yaml", fails=True)
    assert told.startswith("error: params.yaml can't be read as exported units")
    assert told.count("\n") == 1
