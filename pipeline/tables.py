"""Parquet tables that stages hand to each other: written whole or not at all, and the same bytes for the same table."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

TABLE_VERSION = "1"  # raised when the meaning of a column changes
_VERSION_KEY = b"table_version"


def to_arrow(frame: pd.DataFrame) -> pa.Table:
    """An Arrow table without pandas' index."""
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def write(frame: pd.DataFrame | pa.Table, path: Path) -> None:
    """Write a table to a Parquet file by way of a temporary one beside it."""
    table = to_arrow(frame) if isinstance(frame, pd.DataFrame) else frame
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_VERSION_KEY: TABLE_VERSION.encode()}), buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read(path: Path) -> pd.DataFrame:
    """Read a table that `write` wrote; UserError where it is missing, damaged or of another version."""
    if not path.exists():
        raise UserError(f"{path} does not exist; `dvc repro` makes it")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); delete it and run `dvc repro`") from error
    found = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if found != TABLE_VERSION:
        raise UserError(f"{path} is of table version {found}, this code reads version {TABLE_VERSION}; run `dvc repro`")
    return table.to_pandas()


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises UserError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run dvc repro, which makes it") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); delete it and run dvc repro again") from None


def read_record(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """A JSON object with at least these keys, each of its kind. Raises UserError where the file holds anything else."""
    record = read_json(path)
    again = "delete it and run dvc repro, which makes it anew"
    if not isinstance(record, dict):
        raise UserError(f"{path}: holds a {type(record).__name__} but must hold a JSON object; {again}")
    for key, kind in kinds.items():
        if key not in record:
            raise UserError(f"{path}: lacks {key!r}, so another version of this code wrote it; {again}")
        if not isinstance(record[key], kind) or (isinstance(record[key], bool) and kind is not bool):
            raise UserError(f"{path}: {key} is {str(record[key])[:80]!r}, which this code never writes; {again}")
    return record


def write_json(value: Any, path: Path) -> None:
    """Write indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it; UserError where the disk is full or the folder read-only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error.strerror}); free space or make {path.parent} writable"
        ) from error
