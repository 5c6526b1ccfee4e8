"""The kinds of values that params.yaml holds."""

import pytest

from pipeline.settings.fields import parse_memory


@pytest.mark.parametrize("memory", ["", "4", "GB", "-1GB", "4gb", "4GB ", "0MB", 0, -5, "9999999999TB"])
def test_bad_memory(memory: int | str) -> None:
    with pytest.raises(ValueError, match="no amount of memory"):
        parse_memory(memory)
