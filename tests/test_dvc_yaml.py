"""dvc.yaml against code and settings: nothing that a stage rests on is forgotten, nothing named is gone."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.params import METHODS, Params, Section

ROOT = Path(__file__).parent.parent
STAGES: dict[str, dict[str, Any]] = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]

# How work is carried out, told, checked and kept; a change there changes no number.
MACHINERY = {"__init__", "engine", "errors", "memory", "progress", "ray_engine", "status", "store", "tables"}


def expanded(entries: list[str]) -> list[str]:
    """Entries of a matrix stage with each method put in."""
    return [entry.replace("${item.method}", method) for entry in entries for method in METHODS]


@pytest.mark.parametrize("stage", STAGES)
def test_code_that_a_stage_names_is_there(stage: str) -> None:
    paths = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline/", "stages/"))]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_module_is_named_by_a_stage_or_is_machinery() -> None:
    named = {Path(dep).stem for stage in STAGES.values() for dep in stage["deps"]}
    modules = {path.stem for path in (ROOT / "pipeline").glob("*.py")}
    assert modules - named - MACHINERY == set()
    assert named & MACHINERY == set()


@pytest.mark.parametrize("stage", [stage for stage in STAGES if "params" in STAGES[stage]])
def test_settings_that_a_stage_names_exist(stage: str) -> None:
    for dotted in expanded(STAGES[stage]["params"]):
        section: Any = Params
        for name in dotted.split("."):
            assert name in section.model_fields, dotted
            section = section.model_fields[name].annotation


def test_every_setting_but_compute_is_named_by_a_stage() -> None:
    named = {key for stage in STAGES.values() for key in expanded(stage.get("params", []))}
    # What does not stand in a table: how many failures are too many.
    named |= {"edit.max_failed_share"}
    for name, field in Params.model_fields.items():
        inner = field.annotation
        keys = {name}
        if name not in named and isinstance(inner, type) and issubclass(inner, Section):
            keys = {f"{name}.{key}" for key in inner.model_fields}
        assert keys <= named or name == "compute", keys - named
    assert not any(key.split(".")[0] == "compute" for key in named)


def test_edits_do_not_depend_on_which_others_are_asked_for() -> None:
    assert not {"edit", "edit.methods", "edit.problems"} & set(STAGES["edit"]["params"])


@pytest.mark.parametrize("stage", [stage for stage in STAGES if "cmd" in STAGES[stage] and stage != "params"])
def test_a_stage_that_fails_has_deleted_nothing(stage: str) -> None:
    outs = STAGES[stage]["outs"] + STAGES[stage].get("metrics", [])
    assert outs
    for out in outs:
        assert [options["persist"] for options in out.values()] == [True]
