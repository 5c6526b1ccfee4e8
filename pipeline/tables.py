"""Parquet tables that stages hand to each other: written whole or not at all, and the same bytes for the same table."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.disk import write_bytes
from pipeline.errors import UserError

# Columns of the tables that stages hand to each other, and what each holds; README and reports rest on them.
TEXT, NUMBER, WHOLE, TRUTH, TEXTS = "text", "numbers", "whole numbers", "true or false", "lists of texts"
FACTS = {
    "fact_id": TEXT, "relation": TEXT, "subject": TEXT, "prompt": TEXT, "target_true": TEXT, "target_false": TEXT,
    "paraphrases": TEXTS, "neighborhood": TEXTS, "source": TEXT, "reverse": TEXT, "p_true": NUMBER,
    "greedy_correct": TRUTH, "kept": TRUTH, "drop_reason": TEXT,
}  # fmt: skip
TRACE = {
    "fact_id": TEXT, "module": TEXT, "window": WHOLE, "token_index": WHOLE, "token": TEXT, "token_role": TEXT,
    "layer": WHOLE, "p_clean": NUMBER, "p_corrupt": NUMBER, "p_restored": NUMBER, "effect": NUMBER, "fraction": NUMBER,
}  # fmt: skip
EDITS = {
    "fact_id": TEXT, "problem": TEXT, "method": TEXT, "window": WHOLE, "layer": WHOLE, "prompt_kind": TEXT,
    "prompt_index": WHOLE, "target": TEXT, "p_pre": NUMBER, "p_post": NUMBER, "baseline": TEXT,
    "p_baseline_pre": NUMBER, "p_baseline_post": NUMBER, "delta_norm": NUMBER, "steps": WHOLE, "loss": NUMBER,
    "status": TEXT, "acts": TRUTH, "denominator": NUMBER, "update_norm": NUMBER, "text_loss_pre": NUMBER,
    "text_loss_post": NUMBER, "update_key": TEXT,
}  # fmt: skip
SCORES = {
    "fact_id": TEXT, "relation": TEXT, "problem": TEXT, "method": TEXT, "window": WHOLE, "layer": WHOLE, "acts": TRUTH,
    "rewrite": NUMBER, "paraphrase": NUMBER, "paraphrase_first": NUMBER, "neighborhood": NUMBER,
    "neighborhood_first": NUMBER, "overall": NUMBER, "reverse": NUMBER,
    "trace_module": TEXT, "trace_window": WHOLE, "fraction": NUMBER, "effect": NUMBER, "last_subject": NUMBER,
    "last_subject_fraction": NUMBER,
    "denominator": NUMBER, "update_norm": NUMBER, "text_loss_pre": NUMBER, "text_loss_post": NUMBER,
    "collapsed": TRUTH,
}  # fmt: skip
TABLE_TEXTS = {  # of stage table: a row a text, what it is before and after an edit, its GE, and the fact's RS
    "fact_id": TEXT, "method": TEXT, "layer": WHOLE, "prompt_index": WHOLE, "prompt": TEXT, "before": TEXT,
    "after": TEXT, "entropy": NUMBER, "reference": NUMBER,
}  # fmt: skip

# Words in cells that several wings write or look for.
ERROR_INJECTION = "error_injection"  # the problem of all tables that compare methods
UNEDITED, NO_LAYER = "unedited", -1  # method or status, and layer, of rows of the model without an edit
BEST = "best on other facts"  # why stage table shows a method at a layer
NOT_SEVERED = "none"  # of data/maps.parquet
OWN = "run"  # the variation of data/robustness.parquet that is the run's own traces

LEFT_OUT = ("record", "source_file", "reason")  # of data/left_out.csv

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


def read(path: Path, columns: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Read a table that `write` wrote; UserError where it is missing, damaged or of another version.

    columns: those that it must have, and what they must hold.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; `dvc repro` makes it")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not a readable Parquet file ({told}); delete it and run `dvc repro`") from error
    found = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if found != TABLE_VERSION:
        raise UserError(f"{path} is of table version {found}, this code reads version {TABLE_VERSION}; run `dvc repro`")
    again = "so another version of this code wrote it; delete it and run `dvc repro`"
    for name, kind in (columns or {}).items():
        if name not in table.column_names:
            raise UserError(f"{path} lacks the column {name!r}, {again}")
        column = table.column(name)
        if not _holds(column.type, kind):
            raise UserError(f"{path}: column {name!r} holds {column.type} but must hold {kind}, {again}")
        if column.null_count and kind != NUMBER:  # in numbers they read as NaN
            raise UserError(f"{path}: column {name!r} has {column.null_count} cells without a value, {again}")
    return table.to_pandas()


def read_edits(folder: Path, methods: Iterable[str], problems: Iterable[str]) -> pd.DataFrame:
    """The tables data/edits/<method>-<problem>.parquet, one below the other; UserError as for `read`."""
    names = list(itertools.product(methods, problems))
    return pd.concat(
        [read(folder / f"{method}-{problem}.parquet", EDITS) for method, problem in names], ignore_index=True
    )


def _holds(found: pa.DataType, kind: str) -> bool:
    is_ = pa.types
    if kind == TEXT:
        return is_.is_string(found) or is_.is_large_string(found)
    if kind == TEXTS:  # a column of empty lists alone has no type for their items
        listed = is_.is_list(found) or is_.is_large_list(found)
        return listed and (is_.is_null(found.value_type) or _holds(found.value_type, TEXT))
    if kind == TRUTH:
        return is_.is_boolean(found)
    return is_.is_integer(found) or (kind == NUMBER and is_.is_floating(found))


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises UserError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run dvc repro, which makes it") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); delete it and run dvc repro again") from None
    except (ValueError, RecursionError) as error:
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


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV with ten significant digits, so that rounding in the last bits changes no file."""
    return str(table.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, as `csv_text` has it."""
    write_bytes(path, csv_text(table).encode("utf-8"))
