"""The store keeps what was put into it, byte for byte, through kills, damage, full disks and company."""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import store as module
from pipeline.errors import UserError
from pipeline.store import STALE_SECONDS, Store, code_version
from tests.conftest import ROOT

KEY = Store.key(unit=1)

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
cells = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
)


def table(rows: list[tuple[Any, ...]]) -> pa.Table:
    types = [pa.int64(), pa.float64(), pa.string(), pa.list_(pa.string())]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in types]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(arrays, names=["layer", "p", "text", "list"])


SOME = table([(layer, layer / 7, "ok", ["a", "é"]) for layer in range(40)])


def identical(left: pa.Table, right: pa.Table) -> bool:
    """Same schema, values and missing values; nan equals nan."""
    if left.schema != right.schema or left.num_rows != right.num_rows:
        return False
    same_floats = np.array_equal(left["p"].to_numpy(), right["p"].to_numpy(), equal_nan=True)
    return bool(same_floats) and left.drop_columns("p").equals(right.drop_columns("p"))


def only_file(root: Path) -> Path:
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) == 1
    return files[0]


# Keys


@given(st.dictionaries(st.text(min_size=1), values, max_size=6))
def test_key_ignores_the_order_of_names(depends: dict[str, Any]) -> None:
    key = Store.key(**depends)
    assert key == Store.key(**dict(reversed(depends.items())))
    assert len(key) == 32
    assert int(key, 16) >= 0


@given(st.dictionaries(st.text(), values, max_size=3), st.dictionaries(st.text(), values, max_size=3))
def test_different_values_have_different_keys(left: dict[str, Any], right: dict[str, Any]) -> None:
    def canonical(value: Any) -> Any:  # tells 1, 1.0 and True apart, as == does not
        if isinstance(value, dict):
            return "mapping", sorted((name, canonical(item)) for name, item in value.items())
        return ("list", [canonical(item) for item in value]) if isinstance(value, list) else repr(value)

    assert (Store.key(value=left) == Store.key(value=right)) == (canonical(left) == canonical(right))


def test_key_is_the_hash_that_its_definition_gives() -> None:
    text = '{"a":[1,2.5,true,null],"b":{"\\u00e9":"x"}}'
    assert Store.key(b={"é": "x"}, a=(1, 2.5, True, None)) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_key_tells_types_and_nesting_apart() -> None:
    alike: list[Any] = [1, 1.0, True, "1", [1], [[1]], {"1": 1}, None, "", [], {}, ["", ""], ["a", "b"], ["ab"], "ab"]
    assert len({Store.key(value=value) for value in alike}) == len(alike)
    assert Store.key(value=(1, (2, 3))) == Store.key(value=[1, [2, 3]])


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", Path("x"), np.int64(3), object(), {1: "a"}, [{"a": {2}}]])
def test_key_refuses_what_json_would_change(value: Any) -> None:
    with pytest.raises(TypeError, match=r"key\.value"):
        Store.key(value=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_key_refuses_numbers_that_equal_nothing(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Store.key(value=value)


# Round trips


@settings(max_examples=60, deadline=None)
@given(st.lists(cells, max_size=8), st.text(st.characters(exclude_categories=["Cs"])))
def test_table_comes_back_as_it_was(rows: list[tuple[Any, ...]], label: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Store(folder).put_table("trace", KEY, table(rows), label)
        back = Store(folder).get_table("trace", KEY, label)
        assert back is not None
        assert identical(back, table(rows))
        assert back.schema.metadata is None
        assert Store(folder).entries()[0].label == label


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda n: n != "__metadata__"),
        st.tuples(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool]),
            st.lists(st.integers(0, 3), max_size=3), st.integers(0, 9)), max_size=4)
)  # fmt: skip
def test_tensors_come_back_as_they_were(recipes: dict[str, Any]) -> None:
    tensors = {
        name: (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 5).to(dtype)
        for name, (dtype, shape, seed) in recipes.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        Store(folder).put_tensors("moments", KEY, tensors, "block 0")
        back = Store(folder).get_tensors("moments", KEY, "block 0")
        assert back is not None
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert back[name].dtype == tensor.dtype
            assert torch.equal(back[name], tensor)


def test_tensors_that_share_memory_or_are_views_can_be_stored(tmp_path: Path) -> None:
    whole = torch.arange(12.0, requires_grad=True).reshape(3, 4)
    Store(tmp_path).put_tensors("moments", KEY, {"whole": whole, "again": whole, "turned": whole.T[1:]}, "x")
    back = Store(tmp_path).get_tensors("moments", KEY, "x")
    assert back is not None
    assert torch.equal(back["turned"], whole.T[1:])
    assert torch.equal(back["again"], whole)


def test_data_frame_is_stored_without_its_index(tmp_path: Path) -> None:
    frame = pd.DataFrame({"layer": [1, 2], "p": [0.5, float("nan")]}, index=[7, 3])
    Store(tmp_path).put_table("trace", KEY, frame, "x")
    back = Store(tmp_path).get_table("trace", KEY, "x")
    assert back is not None
    pd.testing.assert_frame_equal(back.to_pandas(), frame.reset_index(drop=True))


def test_own_metadata_of_a_table_stay(tmp_path: Path) -> None:
    Store(tmp_path).put_table("trace", KEY, SOME.replace_schema_metadata({b"table_version": b"1"}), "x")
    back = Store(tmp_path).get_table("trace", KEY, "x")
    assert back is not None
    assert back.schema.metadata == {b"table_version": b"1"}


def test_pieces_of_a_long_table_do_not_show_in_its_bytes(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).random(200_000)
    whole = pa.table({"p": numbers})
    pieces = pa.concat_tables([whole.slice(start, 777) for start in range(0, len(numbers), 777)])
    for name, some in (("one", whole), ("two", pieces)):
        Store(tmp_path / name).put_table("trace", KEY, some, "x")
    assert only_file(tmp_path / "one").read_bytes() == only_file(tmp_path / "two").read_bytes()


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    pieces = pa.concat_tables([SOME.slice(0, 13), SOME.slice(13)])
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2)}
    for name, some, named in (("one", SOME, tensors), ("two", pieces, dict(sorted(tensors.items())))):
        Store(tmp_path / name).put_table("trace", KEY, some, "x")
        Store(tmp_path / name).put_tensors("moments", KEY, named, "x")
    for path in (tmp_path / "one").rglob("*.*"):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.read_bytes() == other.read_bytes()


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path / "new")
    assert store.get_table("trace", KEY, "x") is None
    assert store.get_tensors("trace", KEY, "x") is None
    assert not store.has("trace", KEY)
    assert store.entries() == []
    assert store.prune(set()) == (0, 0)
    assert not (tmp_path / "new").exists()


def test_a_store_sees_at_once_what_another_put_or_removed(tmp_path: Path) -> None:
    """Listings are kept between calls; they must not hide changes, however fast these follow each other."""
    reader, writer = Store(tmp_path), Store(tmp_path)
    for i in range(50):
        key = Store.key(i=i)
        assert not reader.has("trace", key)
        writer.put_table("trace", key, SOME, "x")
        assert reader.has("trace", key)
        assert reader.get_table("trace", key, "x") is not None
    writer.prune(set())
    assert not any(reader.has("trace", Store.key(i=i)) for i in range(50))


@pytest.mark.parametrize(
    ("before", "after"), [(0, 0), (-20, -10)], ids=["two changes within a tick", "a file server's clock is behind"]
)
def test_a_put_is_seen_though_the_folder_s_time_says_little(tmp_path: Path, before: float, after: float) -> None:
    reader, writer, now = Store(tmp_path), Store(tmp_path), time.time()
    writer.put_table("trace", Store.key(unit=2), SOME, "x")
    os.utime(tmp_path / "trace", (now, now + before))
    assert not reader.has("trace", KEY)
    writer.put_table("trace", KEY, SOME, "x")
    os.utime(tmp_path / "trace", (now, now + after))
    assert reader.has("trace", KEY)


def test_entries_and_prune(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [Store.key(i=i) for i in range(3)]
    for i, key in enumerate(keys):
        store.put_table("trace", key, SOME, f"fact {i}")
    store.put_tensors("moments", keys[0], {"0": torch.zeros(3)}, "block 0")
    (tmp_path / "trace" / "notes.txt").write_text("not the store's")
    entries = store.entries()
    assert [(e.step, e.key, e.label) for e in entries] == [
        ("moments", keys[0], "block 0"),
        *sorted(("trace", key, f"fact {i}") for i, key in enumerate(keys)),
    ]
    assert all(entry.size > 0 and abs(time.time() - entry.mtime) < 60 for entry in entries)
    gone = [entry for entry in entries if (entry.step, entry.key) != ("trace", keys[1])]
    assert store.prune({("trace", keys[1]), ("moments", keys[1])}) == (3, sum(entry.size for entry in gone))
    assert [(e.step, e.key) for e in store.entries()] == [("trace", keys[1])]
    assert (tmp_path / "trace" / "notes.txt").exists()
    assert not (tmp_path / "moments").exists()


@pytest.mark.parametrize("step", ["", "..", "a/b", ".hidden", "a b"])
def test_step_must_be_a_plain_folder_name(tmp_path: Path, step: str) -> None:
    with pytest.raises(ValueError, match="can't be a folder's name"):
        Store(tmp_path).put_table(step, KEY, SOME, "x")


def test_key_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not of Store\.key"):
        Store(tmp_path).put_table("trace", "../../x", SOME, "x")


# Damage


def damaged(content: bytes, how: str, rng: random.Random) -> bytes:
    if how == "emptied":
        return b""
    if how == "truncated":
        return content[: rng.randrange(1, len(content))]
    if how == "grown":
        return content + b"\0"
    if how == "zeroed":
        start = rng.randrange(len(content) - 8)
        return content[:start] + bytes(8) + content[start + 8 :] if any(content[start : start + 8]) else content[:-1]
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


@pytest.mark.parametrize("kind", ["table", "tensors"])
@pytest.mark.parametrize("how", ["emptied", "truncated", "grown", "zeroed", "bit flipped"])
def test_damage_is_noticed_named_and_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, how: str
) -> None:
    rng = random.Random(how)
    store = Store(tmp_path)

    def put() -> None:
        if kind == "table":
            store.put_table("trace", KEY, SOME, "fact_7 mlp")
        else:
            store.put_tensors("trace", KEY, {"0": torch.arange(30.0)}, "fact_7 mlp")

    def get() -> Any:
        return (store.get_table if kind == "table" else store.get_tensors)("trace", KEY, "fact_7 mlp")

    for _ in range(1 if how == "emptied" else 30):
        put()
        path = only_file(tmp_path)
        path.write_bytes(damaged(path.read_bytes(), how, rng))
        assert get() is None
        warning = capsys.readouterr().err
        assert f"warning: {path} (fact_7 mlp) is" in warning
        assert "computed again" in warning
        assert warning.count("\n") == 1
        assert not path.exists()
    put()
    assert get() is not None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["table", "tensors"])
def test_another_version_is_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "STORE_VERSION", 0)
        if kind == "table":
            store.put_table("trace", KEY, SOME, "fact_7")
        else:
            store.put_tensors("trace", KEY, {"0": torch.zeros(2)}, "fact_7")
    path = only_file(tmp_path)
    get = store.get_table if kind == "table" else store.get_tensors
    assert get("trace", KEY, "fact_7") is None
    assert f"{path} (fact_7) is of store version 0, this code writes version 1" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_foreign_file_with_a_fitting_name_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    (tmp_path / "trace").mkdir()
    pq.write_table(SOME, tmp_path / "plain.parquet")
    for content in (
        (tmp_path / "plain.parquet").read_bytes(),
        b"PAR1 but not really PAR1",
        b"\2\0\0\0\0\0\0\0{}",
        b"x",
    ):
        path = tmp_path / "trace" / f"{KEY}.{hashlib.sha256(content).hexdigest()[:16]}.{kind}"
        path.write_bytes(content)
        store = Store(tmp_path)
        assert [entry.label for entry in store.entries()] == [""]
        assert (store.get_table if kind == "parquet" else store.get_tensors)("trace", KEY, "fact_7") is None
        assert "is not a file of this store" in capsys.readouterr().err
        assert not path.exists()


def test_file_renamed_to_another_key_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path).put_table("trace", KEY, SOME, "fact_7")
    path, other = only_file(tmp_path), Store.key(unit=2)
    path.rename(path.with_name(path.name.replace(KEY, other)))
    assert Store(tmp_path).get_table("trace", other, "fact_8") is None
    assert "holds another unit than its name says" in capsys.readouterr().err


def test_of_two_results_for_one_key_one_remains(tmp_path: Path) -> None:
    for rows in (3, 4):
        Store(tmp_path).put_table("trace", KEY, SOME.slice(0, rows), "x")
    assert len(list((tmp_path / "trace").iterdir())) == 2
    first = Store(tmp_path).get_table("trace", KEY, "x")
    assert only_file(tmp_path)
    again = Store(tmp_path).get_table("trace", KEY, "x")
    assert first is not None
    assert again is not None
    assert first.equals(again)


def test_sound_result_is_found_beside_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    for rows in (3, 4):
        store.put_table("trace", KEY, SOME.slice(0, rows), "x")
    first, second = sorted((tmp_path / "trace").iterdir())
    first.write_bytes(b"")
    kept = store.get_table("trace", KEY, "x")
    assert kept is not None
    assert kept.num_rows in (3, 4)
    assert f"{first} (x) is empty" in capsys.readouterr().err
    assert only_file(tmp_path) == second


# Temporary files


def test_opening_removes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "trace"
    folder.mkdir()

    def temporary(host: str, pid: int, age: float = 0) -> Path:
        path = folder / f".{KEY}.{host}.{pid}.{random.randbytes(4).hex()}.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    gone = [temporary(module._HOST, dead.pid), temporary("elsewhere", os.getpid(), STALE_SECONDS + 60)]
    gone.append(temporary(module._HOST, os.getpid(), STALE_SECONDS + 60))
    stay = [temporary(module._HOST, os.getpid()), temporary("elsewhere", dead.pid), temporary(module._HOST, 1)]
    (folder / ".notes.tmp").write_text("not the store's")
    Store(tmp_path)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in [*stay, folder / ".notes.tmp"])
    assert Store(tmp_path).entries() == []


# Real processes


def run(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=check)


# Forks writers before anything has started a thread: importing anew for each would take longer than the test.
FORKS = """
    import os, signal, sys, time
    import pyarrow as pa
    from pipeline.store import Store

    root, seconds = sys.argv[1], [float(s) for s in sys.argv[2:]]

    def write(child):
        store = Store(root)
        n = 0
        while True:
            for i in range(10_000):
                key = Store.key(i=i)
                if (i * 7 + child) % 3 and not store.has("trace", key):
                    rows = list(range(i, i + 200))
                    store.put_table("trace", key, pa.table({"layer": rows, "p": [r / 7 for r in rows]}), f"unit {i}")
    """


def sound_units(root: Path) -> int:
    """How many units there are, after checking that each is what its key says, and nothing else is there."""
    store = Store(root)
    entries = store.entries()
    numbers = {Store.key(i=i): i for i in range(10_000)}
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
    from pipeline.store import Store

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
                    key, label = Store.key(i=i), f"unit {i}"
                    store.put_table("trace", key, pa.table({"layer": rows, "p": [r / 7 for r in rows]}), label)
                    assert store.get_table("trace", key, label) is not None
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
    from pipeline.store import Store

    root, how = Path(sys.argv[1]), sys.argv[2]
    Store(root).put_tensors("moments", Store.key(i=0), {"0": torch.rand(10)}, "first")
    if how == "limit":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    elif how == "closed":
        (root / "moments").chmod(0o555)
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
    try:
        Store(root).put_tensors("moments", Store.key(i=1), {"0": torch.rand(100_000)}, "second")
        print("put")
    except UserError as error:
        print(error)
    """


def refused(root: Path, how: str) -> str:
    """The sentence with which a put into `root` is refused; checks that it left no trace and the first unit."""
    lines = run(PUT, root, how).stdout.splitlines()
    assert len(lines) == 1
    assert f"{root / 'moments'}{os.sep}{Store.key(i=1)}" in lines[0]
    assert " could not be written because " in lines[0]
    assert len(list((root / "moments").iterdir())) == 1
    assert Store(root).get_tensors("moments", Store.key(i=0), "first") is not None
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
    store.put_table("trace", Store.key(unit=2), SOME, "second")
    damaged_file = next((small_disk / "trace").glob(f"{Store.key(unit=2)}.*"))
    damaged_file.write_bytes(b"")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert Store(small_disk).get_table("trace", KEY, "first") is not None
    assert Store(small_disk).get_table("trace", Store.key(unit=2), "second") is None
    assert "(second) is empty" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"read-only or belongs to someone else \(Read-only file system\)"):
        store.put_table("trace", Store.key(unit=3), SOME, "third")
    with pytest.raises(UserError, match="Read-only file system"):
        store.prune(set())


def test_file_in_the_store_s_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(UserError, match="store is a file; the store of finished units needs a folder there"):
        Store(tmp_path / "store")
    (tmp_path / "trace").write_text("x")
    with pytest.raises(UserError, match="could not be written"):
        Store(tmp_path).put_table("trace", KEY, SOME, "x")


# Code versions

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
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The version of a module of the given source."""
    monkeypatch.syspath_prepend(tmp_path)

    def of(source: str) -> str:
        (tmp_path / "some_module_of_a_test.py").write_text(source)
        return code_version("some_module_of_a_test")

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


def test_version_of_several_modules_depends_on_each_and_runs_none(version: Any) -> None:
    assert version("raise SystemExit('must not run')") != version("raise SystemExit('nor this')")
    assert code_version("pipeline.errors") != code_version("pipeline.errors", "pipeline.seeds")
    assert code_version("pipeline.errors", "pipeline.seeds") == code_version("pipeline.errors", "pipeline.seeds")
    assert code_version("pipeline.errors") != code_version("pipeline.seeds")


@pytest.mark.parametrize("name", ["pipeline.no_such_module", "sys", "no_such_module_at_all"])
def test_version_of_no_module_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no source for module"):
        code_version(name)
