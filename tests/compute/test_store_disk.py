"""The store through kills, many writers at once, and disks that refuse."""

import os
import random
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.compute.keys import key
from pipeline.compute.store import Store
from pipeline.errors import UserError
from tests.compute.units import KEY, SOME
from tests.conftest import ROOT


def run(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=check)


# Forks writers before anything has started a thread: importing anew for each would take longer than the test.
FORKS = """
    import os, signal, sys, time
    import pyarrow as pa
    from pipeline.compute.keys import key
    from pipeline.compute.store import Store

    root, seconds = sys.argv[1], [float(s) for s in sys.argv[2:]]

    def write(child):
        store = Store(root)
        n = 0
        while True:
            for i in range(10_000):
                unit = key(i=i)
                if (i * 7 + child) % 3 and not store.has("trace", unit):
                    rows = list(range(i, i + 200))
                    store.put_table("trace", unit, pa.table({"layer": rows, "p": [r / 7 for r in rows]}), f"unit {i}")
    """


def sound_units(root: Path) -> int:
    """How many units there are, after checking that each is what its key says, and nothing else is there."""
    store = Store(root)
    entries = store.entries()
    numbers = {key(i=i): i for i in range(10_000)}
    for entry in entries:
        i = numbers[entry.key]
        assert entry.label == f"unit {i}"
        back = store.get_table("trace", entry.key, entry.label)
        assert back is not None
        assert back["layer"].to_pylist() == list(range(i, i + 200))
        assert back["p"].to_pylist() == [row / 7 for row in range(i, i + 200)]
    names = [path.name for path in (root / "trace").iterdir()]
    assert not [name for name in names if name.startswith(".")]
    assert len(names) == len({entry.key for entry in entries})
    return len(entries)


def test_killed_at_random_moments_nothing_is_lost_or_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    script = (
        FORKS
        + """
    for pause in seconds:
        child = os.fork()
        if not child:
            write(0)
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        finished = {name for name in os.listdir(root + "/trace") if name.endswith("parquet")}
        left = [name for name in os.listdir(root + "/trace") if name.endswith("tmp")]
        print(len(finished), len(left), flush=True)
    """
    )
    pauses = [rng.uniform(0.02, 0.25) for _ in range(20)]
    (tmp_path / "trace").mkdir()
    done = run(script, tmp_path, *pauses)
    counts = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(counts) == 20
    assert [finished for finished, _ in counts] == sorted(finished for finished, _ in counts)
    assert max(left for _, left in counts) <= 1  # the next writer's opening removed the last one's
    assert any(left for _, left in counts), "no kill struck in the middle of a write"
    assert sound_units(tmp_path) == counts[-1][0] > 20
    assert capsys.readouterr().err == ""


def test_many_writers_at_once_all_end_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """
    import os, sys
    import pyarrow as pa
    from pipeline.compute.keys import key
    from pipeline.compute.store import Store

    children = []
    go, ready = os.pipe()
    for child in range(4):
        children.append(os.fork())
        if not children[-1]:
            os.close(ready)
            os.read(go, 1)  # until all are there
            store = Store(sys.argv[1])
            try:
                for i in range(60):
                    rows = list(range(i, i + 200))
                    unit, label = key(i=i), f"unit {i}"
                    store.put_table("trace", unit, pa.table({"layer": rows, "p": [r / 7 for r in rows]}), label)
                    assert store.get_table("trace", unit, label) is not None
                    Store(sys.argv[1])  # opening must not take the others' temporary files
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
    os.close(ready)
    print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    """
    assert run(script, tmp_path).stdout.strip() == "[0, 0, 0, 0]"
    assert sound_units(tmp_path) == 60
    assert capsys.readouterr().err == ""


# Disks that refuse

PUT = """
    import os, resource, signal, sys
    from pathlib import Path
    import torch
    from pipeline.errors import UserError
    from pipeline.compute.keys import key
    from pipeline.compute.store import Store

    root, how = Path(sys.argv[1]), sys.argv[2]
    Store(root).put_tensors("moments", key(i=0), {"0": torch.rand(10)}, "first")
    if how == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    elif how == "closed":
        (root / "moments").chmod(0o555)
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
    try:
        Store(root).put_tensors("moments", key(i=1), {"0": torch.rand(100_000)}, "second")
        print("put")
    except UserError as error:
        print(error)
    """


def refused(root: Path, how: str) -> str:
    """The sentence with which a put into `root` is refused; checks that it left no trace and the first unit."""
    lines = run(PUT, root, how).stdout.splitlines()
    assert len(lines) == 1
    assert f"{root / 'moments'}{os.sep}{key(i=1)}" in lines[0]
    assert " could not be written because " in lines[0]
    assert len(list((root / "moments").iterdir())) == 1
    assert Store(root).get_tensors("moments", key(i=0), "first") is not None
    return lines[0]


def test_file_limit_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    assert "because the disk is full or a quota is used up (File too large)" in refused(tmp_path, "limit")
    assert run(PUT, tmp_path, "none").stdout.strip() == "put"  # the next run goes on


def test_read_only_folder_is_told_and_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o755)
        sentence = refused(Path(folder), "closed")
        assert "because its folder is read-only or belongs to someone else (Permission denied)" in sentence
        assert f"make {Path(folder) / 'moments'} writable" in sentence
        (Path(folder) / "moments").chmod(0o755)
        assert run(PUT, folder, "none").stdout.strip() == "put"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs rights that this user has not; the limit on file sizes is tested everywhere")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_told_and_leaves_nothing(small_disk: Path) -> None:
    assert "because the disk is full or a quota is used up (No space left on device)" in refused(small_disk, "none")
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert run(PUT, small_disk, "none").stdout.strip() == "put"


def test_read_only_disk_is_told_and_can_be_read(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(small_disk)
    store.put_table("trace", KEY, SOME, "first")
    store.put_table("trace", key(unit=2), SOME, "second")
    damaged_file = next((small_disk / "trace").glob(f"{key(unit=2)}.*"))
    damaged_file.write_bytes(b"")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert Store(small_disk).get_table("trace", KEY, "first") is not None
    assert Store(small_disk).get_table("trace", key(unit=2), "second") is None
    assert "(second) is empty" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"read-only or belongs to someone else \(Read-only file system\)"):
        store.put_table("trace", key(unit=3), SOME, "third")
    with pytest.raises(UserError, match="Read-only file system"):
        store.prune(set())


def test_file_in_the_store_s_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(UserError, match="store is a file; the store of finished units needs a folder there"):
        Store(tmp_path / "store")
    (tmp_path / "trace").write_text("x")
    with pytest.raises(UserError, match="could not be written"):
        Store(tmp_path).put_table("trace", KEY, SOME, "x")
