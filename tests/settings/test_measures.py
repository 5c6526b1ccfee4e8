"""The sections of the stages beside the main path: what they refuse, and in which words."""

from pathlib import Path

import pytest

from pipeline.edit.methods import load
from pipeline.errors import UserError
from pipeline.settings.params import check_against_model
from tests.conftest import ROOT

LINE = "  severed: [mlp, attn]"


def written(folder: Path, line: str) -> Path:
    """presets/smoke.yaml with another line in place of `maps.severed`."""
    text, path = (ROOT / "presets" / "smoke.yaml").read_text("utf-8"), folder / "params.yaml"
    assert text.count(LINE) == 1
    path.write_text(text.replace(LINE, line), "utf-8")
    return path


def test_nothing_may_be_severed(tmp_path: Path) -> None:
    assert load(written(tmp_path, "  severed: []")).maps.severed == ()
    assert load(written(tmp_path, "  severed: [attn]")).maps.severed == ("attn",)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("  severed: [hidden]", r"maps\.severed\[0\] is the text 'hidden' but .*must be a list, .*out of mlp, attn"),
        ("  severed: [mlp, mlp]", r"maps\.severed holds mlp twice"),
        (
            "  severed: mlp",
            r"maps\.severed is the text 'mlp' but must be a list, which may be empty, of different names",
        ),
    ],
)
def test_what_cannot_be_severed_is_told(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load(written(tmp_path, line))


def test_the_main_path_runs_on_a_model_that_is_too_small_for_the_stages_beside_it() -> None:
    params = load(ROOT / "presets" / "default.yaml")  # for 30 blocks
    check_against_model(params, 6)
    for section, told in (("table", "layers holds 6"), ("scaling", "layers holds 6"), ("maps", "windows holds 10")):
        with pytest.raises(UserError, match=rf"{section}\.{told}"):
            check_against_model(params, 6, [section])
