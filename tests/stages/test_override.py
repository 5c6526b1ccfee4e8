"""Stage `override` itself, after the stages that it builds on, on the committed model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.analysis.override import LAYERS_COLUMNS, OVERRIDE, OVERRIDE_COLUMNS
from pipeline.compute import inputs
from pipeline.edit import methods
from pipeline.report import extras
from pipeline.settings.params import Params
from pipeline.tables import read, read_record, write_json
from stages import facts, model, override, statistics
from tests.conftest import TINY_FACTS
from tests.stages.projects import on_committed_model

FACTS, LAYERS = 3, [0, 3]
MADE = ("data/override.parquet", "reports/override.csv", "reports/override_layers.csv")


def settings() -> Params:
    return methods.load("params.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages have run."""
    folder = tmp_path_factory.mktemp("run")
    on_committed_model(
        folder,
        facts={"path": str(TINY_FACTS), "count": FACTS},
        compute={"workers": 1},
        edit={"text_tokens": 0},
        override={"layers": LAYERS},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        inputs.DATA.mkdir()
        write_json({"window": 1}, inputs.DATA / "inputs" / "moments.json")
        for stage in (model, facts, statistics, override):
            stage.main(settings())
    return folder


@pytest.fixture(autouse=True)
def _there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)


def test_the_tables_are_whole_and_what_must_hold_does() -> None:
    table = read(Path(MADE[0]), OVERRIDE)
    assert table["fact_id"].nunique() == FACTS
    assert set(table["status"]) == {"unedited", "ok"}
    means = pd.read_csv(MADE[1], dtype={"edited": str}, keep_default_na=False, na_values=[""])
    assert tuple(means.columns) == OVERRIDE_COLUMNS
    assert tuple(pd.read_csv(MADE[2]).columns) == LAYERS_COLUMNS
    changed = means[(means["quantity"] == "change") & (means["object"] == "new")].set_index("edited")
    assert changed["n_facts"].max() == FACTS
    assert changed.loc["all", "mean"] > 0.1  # the model takes these edits
    # Below a changed block the unedited model's outputs are there already; at it, they undo most of the edit.
    edits = table[(table["edited_layer"] >= 0) & (table["object"] == "new")]
    below = edits[edits["window_last"] < edits["edit_first"]]
    assert (below["p_unedited"] - below["p_post"]).abs().max() < 1e-4
    at = edits[(edits["layer"] == edits["edited_layer"]) & (edits["p_post"] > edits["p_pre"] + 0.1)]
    assert ((at["p_unedited"] - at["p_pre"]).abs() < 0.5 * (at["p_post"] - at["p_pre"])).all()


def test_it_is_recorded_and_shown(tmp_path: Path) -> None:
    record = read_record(Path("data/measures/override.json"))
    assert inputs.fits(settings(), "override", record)
    assert list(record["tables"]) == list(MADE)
    assert {step for step, _ in record["units"]} >= {"override"}
    own = tuple(extra for extra in extras.EXTRAS if extra.name == "override")
    (section,) = extras.sections(
        Path("reports"), Path("data"), {"override": {"fits": True}}, record["model"], 0.95, own
    )
    assert section.anchor == "override"
    for plot in section.plots:
        assert plot.save(tmp_path, 60)[1].stat().st_size > 2000


def test_it_gives_the_same_bytes_whatever_was_there() -> None:
    before = {name: Path(name).read_bytes() for name in (*MADE, "data/measures/override.json")}
    stored = sorted(Path("data/store/override").glob("*.parquet"))
    assert len(stored) == FACTS
    stored[1].unlink()
    shutil.rmtree("reports")
    override.main(settings())
    assert {name: Path(name).read_bytes() for name in before} == before
