"""Units in a file arrive in another store as they were, or not at all."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.compute import carried
from pipeline.compute.carried import export_units, import_units
from pipeline.compute.keys import key, versions
from pipeline.compute.store import Store
from pipeline.errors import UserError
from pipeline.tables import read_json, write_json
from tests.compute.units import SOME, identical, only_file, table

UNITS = 6


def filled(root: Path) -> Store:
    store = Store(root)
    for i in range(UNITS):
        store.put_table(f"edit-{i % 3}", key(unit=i), table([(i, i / 3, "a", [])] * i), f"fact {i}")
    store.put_tensors("moments", key(unit="m"), {"0": torch.arange(6.0).reshape(2, 3)}, "block 0")
    return store


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rewritten(path: Path, row: int, **changed: str | bytes) -> None:
    """The file with other values in a row."""
    whole = pq.read_table(path)
    rows = whole.to_pylist()
    rows[row] |= changed
    pq.write_table(pa.Table.from_pylist(rows, schema=whole.schema), path)


def test_another_store_has_the_same_files_afterwards(tmp_path: Path) -> None:
    here, there = filled(tmp_path / "here"), Store(tmp_path / "there")
    number, size = export_units(here, tmp_path / "units.parquet", tmp_path / "timings")
    assert number == UNITS + 1
    assert size == (tmp_path / "units.parquet").stat().st_size < sum(map(len, contents(here.root).values()))
    assert import_units(there, tmp_path / "units.parquet", tmp_path / "timings") == (number, number, versions())
    assert contents(there.root) == contents(here.root)
    assert import_units(there, tmp_path / "units.parquet", tmp_path / "timings") == (0, number, versions())
    found = there.get_table("edit-1", key(unit=4), "")
    assert found is not None
    assert identical(found, table([(4, 4 / 3, "a", [])] * 4))


def test_the_same_units_give_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.parquet", "b.parquet")]
    for file in files:
        export_units(filled(tmp_path / file.stem), file, tmp_path / "timings")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_units_that_are_there_stay_and_new_ones_join_them(tmp_path: Path) -> None:
    export_units(filled(tmp_path / "here"), tmp_path / "units.parquet", tmp_path / "timings")
    there = Store(tmp_path / "there")
    there.put_table("edit-1", key(unit=4), SOME, "another result of unit 4")
    before = contents(there.root)
    new, number, _ = import_units(there, tmp_path / "units.parquet", tmp_path / "timings")
    assert new == number - 1
    assert before.items() <= contents(there.root).items()


def test_what_stages_took_goes_along_and_replaces_nothing(tmp_path: Path) -> None:
    file, here, there = tmp_path / "units.parquet", tmp_path / "took", tmp_path / "theirs"
    for stage, seconds in (("trace", 3.5), ("edit-rome-fact_erasure", 70.0)):
        write_json({"stage": stage, "seconds": seconds, "code": {"a b": "0"}}, here / f"{stage}.json")
    export_units(filled(tmp_path / "here"), file, here)
    write_json({"stage": "trace", "seconds": 1.0}, there / "trace.json")
    import_units(Store(tmp_path / "there"), file, there)
    assert read_json(there / "trace.json") == {"stage": "trace", "seconds": 1.0}
    name = "edit-rome-fact_erasure.json"
    assert (there / name).read_bytes() == (here / name).read_bytes()


@pytest.mark.parametrize("stage", ["../../x", "other", ""])
def test_what_a_stage_of_no_such_name_took_keeps_all_out(tmp_path: Path, stage: str) -> None:
    file = tmp_path / "units.parquet"
    export_units(filled(tmp_path / "here"), file, tmp_path / "none")
    whole = pq.read_table(file)
    mark = json.loads(whole.schema.metadata[b"units"]) | {"timings": {stage: {"stage": "trace"}}}
    pq.write_table(whole.replace_schema_metadata({b"units": json.dumps(mark).encode()}), file)
    with pytest.raises(UserError, match=r"can't be read as exported units .*is not as this code writes it"):
        import_units(Store(tmp_path / "there"), file, tmp_path / "timings")
    assert not contents(tmp_path / "there")
    assert not (tmp_path / "timings").exists()


def test_a_damaged_unit_is_not_carried_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = Store(tmp_path / "here")
    here.put_table("trace", key(unit=1), SOME, "Rome")
    path = only_file(here.root)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="no finished unit"):
        export_units(here, tmp_path / "units.parquet", tmp_path / "timings")
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"content": b"other"}, "is damaged: its content does not fit its checksum"),
        ({"content": b""}, "is empty"),
        ({"name": "../../x"}, "has a name that no unit has"),
        ({"step": ".."}, "has a name that no unit has"),
    ],
)
def test_one_unsound_unit_keeps_all_out(tmp_path: Path, changed: dict[str, str | bytes], told: str) -> None:
    file = tmp_path / "units.parquet"
    export_units(filled(tmp_path / "here"), file, tmp_path / "timings")
    rewritten(file, 3, **changed)
    there = Store(tmp_path / "there")
    with pytest.raises(UserError, match=told):
        import_units(there, file, tmp_path / "timings")
    assert not contents(tmp_path / "there")


def test_a_unit_under_another_ones_key_keeps_all_out(tmp_path: Path) -> None:
    file = tmp_path / "units.parquet"
    export_units(filled(tmp_path / "here"), file, tmp_path / "timings")
    first, second = pq.read_table(file).to_pylist()[:2]
    rewritten(file, 0, name=second["name"][:32] + first["name"][32:])
    with pytest.raises(UserError, match="holds another unit than its name says"):
        import_units(Store(tmp_path / "there"), file, tmp_path / "timings")


@pytest.mark.parametrize("content", [b"", b"no table", None])
def test_what_is_no_file_of_units_is_told(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "units.parquet"
    if content is None:
        pq.write_table(SOME, file)
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"can't be read as exported units .*make export-units wrote is right"):
        import_units(Store(tmp_path / "there"), file, tmp_path / "timings")


def test_a_missing_file_and_another_version_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not there; make export-units writes such a file"):
        import_units(Store(tmp_path / "there"), tmp_path / "units.parquet", tmp_path / "timings")
    export_units(filled(tmp_path / "here"), tmp_path / "units.parquet", tmp_path / "timings")
    monkeypatch.setattr(carried, "STORE_VERSION", 2)
    with pytest.raises(UserError, match="of store version 1; this code reads version 2"):
        import_units(Store(tmp_path / "there"), tmp_path / "units.parquet", tmp_path / "timings")
