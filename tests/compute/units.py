"""A table and a key to store, for the tests of the store."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from pipeline.compute.keys import key

KEY = key(unit=1)

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
