"""The store keeps what was put into it, byte for byte, through damage and company."""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
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

from pipeline.compute import store as module
from pipeline.compute.keys import key
from pipeline.compute.store import STALE_SECONDS, Store
from tests.compute.units import KEY, SOME, cells, identical, only_file, table


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
        unit = key(i=i)
        assert not reader.has("trace", unit)
        writer.put_table("trace", unit, SOME, "x")
        assert reader.has("trace", unit)
        assert reader.get_table("trace", unit, "x") is not None
    writer.prune(set())
    assert not any(reader.has("trace", key(i=i)) for i in range(50))


@pytest.mark.parametrize(
    ("before", "after"), [(0, 0), (-20, -10)], ids=["two changes within a tick", "a file server's clock is behind"]
)
def test_a_put_is_seen_though_the_folder_s_time_says_little(tmp_path: Path, before: float, after: float) -> None:
    reader, writer, now = Store(tmp_path), Store(tmp_path), time.time()
    writer.put_table("trace", key(unit=2), SOME, "x")
    os.utime(tmp_path / "trace", (now, now + before))
    assert not reader.has("trace", KEY)
    writer.put_table("trace", KEY, SOME, "x")
    os.utime(tmp_path / "trace", (now, now + after))
    assert reader.has("trace", KEY)


def test_entries_and_prune(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [key(i=i) for i in range(3)]
    for i, unit in enumerate(keys):
        store.put_table("trace", unit, SOME, f"fact {i}")
    store.put_tensors("moments", keys[0], {"0": torch.zeros(3)}, "block 0")
    (tmp_path / "trace" / "notes.txt").write_text("not the store's")
    entries = store.entries()
    assert [(e.step, e.key, e.label) for e in entries] == [
        ("moments", keys[0], "block 0"),
        *sorted(("trace", unit, f"fact {i}") for i, unit in enumerate(keys)),
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
    path, other = only_file(tmp_path), key(unit=2)
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
