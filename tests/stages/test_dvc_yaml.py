"""dvc.yaml against code and settings: nothing that a stage rests on is forgotten, nothing named is gone."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.closure import closure
from pipeline.edit.methods import METHODS, SETTINGS
from pipeline.settings.params import Params, with_methods
from pipeline.settings.sections import Section
from tests.conftest import ROOT

FILES = ("dvc.yaml", "measures/dvc.yaml")
STAGES: dict[str, dict[str, Any]] = {
    name: stage
    for file in FILES
    for name, stage in YAML(typ="safe", pure=True).load((ROOT / file).read_text("utf-8"))["stages"].items()
}
COMPUTING = [stage for stage in STAGES if stage != "params"]  # that one runs each time


def expanded(entries: list[str]) -> list[str]:
    """Entries of a matrix stage with each method put in."""
    return [entry.replace("${item.method}", method) for entry in entries for method in METHODS]


@pytest.mark.parametrize("stage", COMPUTING)
def test_a_stage_depends_on_all_code_that_it_imports_and_on_no_other(stage: str) -> None:
    deps = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipeline/", "stages/"))]
    files = {path.relative_to(ROOT) for path in closure(f"stages.{stage}").values() if path.stat().st_size > 200}
    files -= {Path("stages/__init__.py")}  # it refuses a Python without the packages, and decides no number
    assert sorted(str(file) for file in files if not any(file.is_relative_to(dep) for dep in deps)) == []
    # Of the ground, all stages name all files.
    wings = [dep for dep in deps if "." not in dep]
    assert [dep for dep in wings if not any(file.is_relative_to(dep) for file in files)] == []
    assert [dep for dep in deps if not (ROOT / dep).exists()] == []


@pytest.mark.parametrize(
    "stage",
    [
        "model",
        "facts",
        "trace",
        "localize",
        "statistics",
        "edit",
        "moments",
        "essence",
        "table",
        "maps",
        "robustness",
        "override",
    ],
)
def test_a_stage_that_computes_depends_on_all_that_is_in_the_keys_of_its_units(stage: str) -> None:
    assert "data/inputs/libraries.json" in STAGES[stage]["deps"]
    rounding = {"compute.compile", "compute.path", "compute.tf32"}
    assert stage == "model" or rounding <= set(STAGES[stage]["params"])


def test_files_that_settings_name_are_looked_at_each_time() -> None:
    assert STAGES["params"]["always_changed"]
    outs = {name for out in STAGES["params"]["outs"] for name in out}
    used = {dep for stage in COMPUTING for dep in STAGES[stage]["deps"] if dep.startswith("data/inputs/")}
    assert used == outs
    assert "data/inputs/text.json" in STAGES["statistics"]["deps"]
    assert "data/inputs/model.json" in STAGES["model"]["deps"]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if "params" in STAGES[stage]])
def test_settings_that_a_stage_names_exist(stage: str) -> None:
    for dotted in expanded(STAGES[stage]["params"]):
        section: Any = with_methods(SETTINGS, list(METHODS))
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


def test_edits_do_not_depend_on_which_others_are_asked_for() -> None:
    assert not {"edit", "edit.methods", "edit.problems"} & set(STAGES["edit"]["params"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_fails_has_deleted_nothing(stage: str) -> None:
    outs = STAGES[stage]["outs"] + STAGES[stage].get("metrics", [])
    assert outs
    for out in outs:
        assert [options["persist"] for options in out.values()] == [True]
