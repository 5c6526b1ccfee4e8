"""DVC's own files, cut off at any byte: DVC starts again after `python -m stages.mend`."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from dvc.dvcfile import Lockfile
from dvc.exceptions import DvcException
from dvc.lock import Lock
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages import mend
from tests.stages.clones import ROOT


@pytest.fixture
def project(tmp_path: Path) -> Path:
    Repo.init(str(tmp_path), no_scm=True).close()
    shutil.copy(ROOT / "dvc.lock", tmp_path)
    return tmp_path


def dvc_reads(project: Path) -> dict[str, object]:
    return Lockfile(Repo(str(project)), str(project / "dvc.lock")).load().get("stages") or {}


def test_a_dvc_lock_cut_off_anywhere_is_read_again_with_all_stages_before_the_cut(project: Path) -> None:
    path = project / "dvc.lock"
    whole = path.read_bytes()
    stages = YAML(typ="safe").load(whole)["stages"]
    ends = [whole.index(f"\n  {name}:\n".encode()) for name in list(stages)[1:]]
    unread = 0
    for cut in [0, 8192, 16384, *random.Random(2026).sample(range(len(whole)), 60)]:
        path.write_bytes(whole[:cut])
        try:
            dvc_reads(project)
        except DvcException:
            unread += 1
        assert mend.main(project) == 0
        got = dvc_reads(project) if path.exists() else {}
        complete = list(stages)[: sum(end < cut for end in ends)]
        assert list(got)[: len(complete)] == complete
        assert {name: got[name] for name in complete} == {name: stages[name] for name in complete}
    assert unread > 10  # DVC by itself stands still


def test_what_can_be_read_is_left_as_it_is(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = project / "dvc.lock"
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    rwlock = project / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text('{"write": {}, "read": {}}', "utf-8")
    assert mend.main(project) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (before, written)
    assert rwlock.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", ["", '{"write": {"/a/b": {"pi'])
def test_a_list_of_used_paths_that_was_cut_off_is_removed(project: Path, content: str) -> None:
    rwlock = project / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text(content, "utf-8")
    assert mend.main(project) == 0
    assert not rwlock.exists()


def test_where_a_dvc_is_at_work_nothing_is_touched(project: Path) -> None:
    (project / "dvc.lock").write_text("schema", "utf-8")
    with Lock(str(project / ".dvc" / "tmp" / "lock")):
        assert mend.main(project) == 0
    assert (project / "dvc.lock").read_text("utf-8") == "schema"


def test_a_folder_without_dvc_is_left_alone(tmp_path: Path) -> None:
    assert mend.main(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []
