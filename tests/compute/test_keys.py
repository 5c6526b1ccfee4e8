"""Keys tell apart what differs, and nothing else."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compute.keys import key

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(st.text(min_size=1), values, max_size=6))
def test_key_ignores_the_order_of_names(depends: dict[str, Any]) -> None:
    found = key(**depends)
    assert found == key(**dict(reversed(depends.items())))
    assert len(found) == 32
    assert int(found, 16) >= 0


@given(st.dictionaries(st.text(), values, max_size=3), st.dictionaries(st.text(), values, max_size=3))
def test_different_values_have_different_keys(left: dict[str, Any], right: dict[str, Any]) -> None:
    def canonical(value: Any) -> Any:  # tells 1, 1.0 and True apart, as == does not
        if isinstance(value, dict):
            return "mapping", sorted((name, canonical(item)) for name, item in value.items())
        return ("list", [canonical(item) for item in value]) if isinstance(value, list) else repr(value)

    assert (key(value=left) == key(value=right)) == (canonical(left) == canonical(right))


def test_key_is_the_hash_that_its_definition_gives() -> None:
    text = '{"a":[1,2.5,true,null],"b":{"\\u00e9":"x"}}'
    assert key(b={"é": "x"}, a=(1, 2.5, True, None)) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_key_tells_types_and_nesting_apart() -> None:
    alike: list[Any] = [1, 1.0, True, "1", [1], [[1]], {"1": 1}, None, "", [], {}, ["", ""], ["a", "b"], ["ab"], "ab"]
    assert len({key(value=value) for value in alike}) == len(alike)
    assert key(value=(1, (2, 3))) == key(value=[1, [2, 3]])


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", Path("x"), np.int64(3), object(), {1: "a"}, [{"a": {2}}]])
def test_key_refuses_what_json_would_change(value: Any) -> None:
    with pytest.raises(TypeError, match=r"key\.value"):
        key(value=value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [-float("inf")]])
def test_key_refuses_numbers_that_equal_nothing(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key(value=value)
