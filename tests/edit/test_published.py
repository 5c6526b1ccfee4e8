"""Where the papers edit: their own blocks in their own models, and the same relative depth elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.edit.methods import METHODS
from pipeline.edit.published import LAYERS, place
from pipeline.lm.model import window_range


@pytest.mark.parametrize(
    ("method", "gpt2_xl", "gptj"), [("rome", 17, 5), ("memit", 15, 6), ("ft", 1, 21), ("ft_l", 0, 0)]
)
def test_the_papers_models_have_the_papers_blocks(method: str, gpt2_xl: int, gptj: int) -> None:
    for family, layers, wanted in (("gpt2", 48, gpt2_xl), ("gptj", 28, gptj)):
        there = place(method, family, layers)
        assert there is not None
        assert (there.layer, there.settings) == (wanted, {})


def test_memits_windows_are_those_that_are_published() -> None:
    assert list(window_range(LAYERS["memit"]["gpt2"], 5, 48)) == [13, 14, 15, 16, 17]
    assert list(window_range(LAYERS["memit"]["gptj"], 6, 28)) == [3, 4, 5, 6, 7, 8]


@given(method=st.sampled_from(sorted(LAYERS)), layers=st.integers(1, 200), family=st.sampled_from(["llama", "gpt2"]))
def test_other_models_have_the_depth_of_gpt2_xl(method: str, layers: int, family: str) -> None:
    there = place(method, family, layers)
    assert there is not None
    assert 0 <= there.layer < layers
    assert abs(there.layer - LAYERS[method]["gpt2"] / 47 * (layers - 1)) <= 0.5


def test_neurons_are_sought_in_all_blocks_and_nothing_is_published_of_others() -> None:
    kn = place("kn", "llama", 30)
    assert kn is not None
    assert kn.settings == {"window": "all"}
    assert [name for name in METHODS if place(name, "llama", 30) is None] == ["ft_1", "ft_5"]
