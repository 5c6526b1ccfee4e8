"""Finished units in one file, to go on with a run on another machine.

A Parquet file with a row a unit, as the store has it: `step`, `name` (key, checksum, kind) and `content`, the bytes of
its file. On the other machine the same keys are asked for where code, settings, model and library versions are the
same; a unit that nothing asks for there does no harm, and `make prune` removes it. What stages took to compute them
goes along, so that the manifest of a run says it where the run ends on another machine than it began on.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.compute.keys import versions
from pipeline.compute.store import STORE_VERSION, Store
from pipeline.disk import write_bytes
from pipeline.errors import UserError
from pipeline.tables import read_record, write_json

COLUMNS = {"step": pa.string(), "name": pa.string(), "content": pa.binary()}
_MARK = b"units"  # the entry of the file's metadata that holds the store's version, the libraries' and what stages took
_STAGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_PAGE = 1 << 26  # bytes; what units have in common is packed once for each page


def export_units(store: Store, path: Path, timings: Path) -> tuple[int, int]:
    """Write all units, and what stages left in `timings`, a JSON file a stage, into a file; returns how many units and
    the file's size in bytes. The same units and timings give the same bytes.

    Raises UserError where there are none, or the file can't be written.
    """
    rows = list(store.contents())
    if not rows:
        raise UserError(f"{store.root} has no finished unit; run `dvc repro` first")
    arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), COLUMNS.values(), strict=True)]
    took = {file.stem: read_record(file, stage=str) for file in sorted(timings.glob("*.json"))}
    mark = json.dumps({"version": STORE_VERSION, "versions": versions(), "timings": took})
    table = pa.table(arrays, names=list(COLUMNS)).replace_schema_metadata({_MARK: mark.encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", compression_level=19, use_dictionary=False, data_page_size=_PAGE)
    write_bytes(path, buffer.getvalue())
    return len(rows), buffer.tell()


def import_units(store: Store, path: Path, timings: Path) -> tuple[int, int, dict[str, str]]:
    """Take the units of a file into the store, none unless all of them are sound, and what stages took into `timings`,
    where none is written down for that stage.

    Returns how many units are new, how many there are in the file, and the library versions that computed them. Raises
    UserError where the file is none of `export_units`, or a unit is damaged.
    """
    wrong = f"{path} can't be read as exported units"
    try:
        table = pq.read_table(path)
        mark = json.loads((table.schema.metadata or {})[_MARK])
        version, made_with, took = mark["version"], dict(mark["versions"]), _timings(mark.get("timings", {}))
        rows = table.select(list(COLUMNS)).to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path} is not there; make export-units writes such a file") from None
    except OSError as error:
        raise UserError(f"{wrong} ({error}); a file that make export-units wrote is right") from None
    except (ValueError, KeyError, TypeError) as error:  # pyarrow's errors are among these
        raise UserError(f"{wrong} ({error}); a file that make export-units wrote is right") from None
    if version != STORE_VERSION:
        raise UserError(f"{path} holds units of store version {version}; this code reads version {STORE_VERSION}")
    for row in rows:
        try:
            Store.check(row["step"], row["name"], row["content"])
        except ValueError as error:
            raise UserError(f"{path}: unit {row['step']}/{row['name']} {error}; nothing was imported") from None
    new = sum(store.take(row["step"], row["name"], row["content"]) for row in rows)
    for stage, record in took.items():
        if not (file := timings / f"{stage}.json").exists():
            write_json(record, file)
    return new, len(rows), made_with


def _timings(found: Any) -> dict[str, dict[str, Any]]:
    """Stage to what it took; ValueError where a name could lead out of the folder, or a record is none of its stage."""
    took = {str(stage): dict(record) for stage, record in dict(found).items()}
    for stage, record in took.items():
        if not _STAGE.fullmatch(stage) or record.get("stage") != stage:
            raise ValueError(f"what stage {stage!r} took is not as this code writes it")
    return took
