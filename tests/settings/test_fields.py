"""The kinds of values that params.yaml holds."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.settings.fields import none_or_a_pair, parse_memory
from pipeline.settings.params import Params
from tests.settings.test_params import changed, refusal


@pytest.mark.parametrize("memory", ["", "4", "GB", "-1GB", "4gb", "4GB ", "0MB", 0, -5, "9999999999TB"])
def test_bad_memory(memory: int | str) -> None:
    with pytest.raises(ValueError, match="no amount of memory"):
        parse_memory(memory)


def test_a_text_has_something_to_predict_or_is_not_measured() -> None:
    assert [none_or_a_pair(tokens) for tokens in (0, 2, 200)] == [0, 2, 200]
    assert Params.model_validate(changed({"edit.text_tokens": 0})).edit.text_tokens == 0
    with pytest.raises(ValueError, match="single token"):
        none_or_a_pair(1)


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("text_tokens", 1, "must be 0, or a whole number of tokens, at least 2"),
        ("text_tokens", -1, "must be 0, or a whole number of tokens, at least 2"),
        ("text_tokens", 10.0, "a whole number"),
        ("text_tokens", None, "a whole number"),
        ("collapse_nats", 0, "must be a number above 0, in nats a token"),
        ("collapse_nats", float("inf"), "above 0"),
    ],
)
def test_bad_settings_of_the_text_are_told(tmp_path: Path, key: str, value: Any, hint: str) -> None:
    told = refusal(tmp_path, changed({f"edit.{key}": value}))
    assert f"edit.{key} is " in told
    assert hint in told
