"""The sections of the stages beside the main path: what they refuse, and in which words."""

import re
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


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "corruptions",
            "[gaussian, mean]",
            r"robustness\.corruptions\[1\] is the text 'mean' but .*gaussian, zero, replace",
        ),
        ("metrics", "[]", r"robustness\.metrics is .* but must be a list of one or more of probability"),
        ("multiples", "[0.0]", r"robustness\.multiples\[0\] is 0\.0 but .*must be a list of .*numbers above 0"),
        ("known", "[within]", r"robustness\.known.* 'within' but .*must be a list, which may be empty, of greedy and"),
        ("known", "[0.1, 0.1]", r"robustness\.known holds 0\.1 twice"),
        ("success", "1.5", r"robustness\.success is 1\.5 but must be null, or a score above 0, at most 1"),
    ],
)
def test_what_cannot_be_varied_is_told(tmp_path: Path, key: str, value: str, told: str) -> None:
    text = (ROOT / "presets" / "smoke.yaml").read_text("utf-8")
    head, section = text.split("\nrobustness:")
    section = re.sub(rf"\n  {key}: [^#]*", f"\n  {key}: {value}  ", section, count=1)
    (tmp_path / "params.yaml").write_text(f"{head}\nrobustness:{section}", "utf-8")
    with pytest.raises(UserError, match=told):
        load(tmp_path / "params.yaml")


def test_nothing_but_the_run_s_own_may_be_asked_for() -> None:
    asked = load(ROOT / "presets" / "smoke.yaml").robustness
    assert asked.known == ("greedy", 0.05, 0.1)
    others = asked.model_dump() | {"layers": None, "known": [], "concentrated": None, "success": None}
    assert type(asked).model_validate(others).known == ()


def test_the_main_path_runs_on_a_model_that_is_too_small_for_the_stages_beside_it() -> None:
    params = load(ROOT / "presets" / "default.yaml")  # for 30 blocks
    check_against_model(params, 6)
    for section, told in (
        ("table", "layers holds 6"), ("scaling", "layers holds 6"), ("maps", "windows holds 10"),
        ("robustness", "layers holds 9"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"{section}\.{told}"):
            check_against_model(params, 6, [section])
