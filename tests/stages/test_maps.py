"""Stage `maps` itself, after the stages that it builds on, on the committed model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis import aie
from pipeline.compute import inputs
from pipeline.edit import methods
from pipeline.report import extras
from pipeline.settings.params import Params
from pipeline.tables import read, read_record
from stages import facts, maps, model, trace
from tests.conftest import TINY_FACTS
from tests.stages.projects import on_committed_model

FACTS, BLOCKS = 4, 6
MADE = ("data/maps.parquet", *(f"reports/{name}" for name in aie.TABLES))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages have run."""
    folder = tmp_path_factory.mktemp("run")
    on_committed_model(folder, facts={"path": str(TINY_FACTS), "count": FACTS}, compute={"workers": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in (model, facts, trace, maps):
            stage.main(settings())
    return folder


@pytest.fixture(autouse=True)
def _there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)


def settings() -> Params:
    return methods.load("params.yaml")


def test_the_tables_are_whole() -> None:
    table = read(Path("data/maps.parquet"))
    assert table["fact_id"].nunique() == FACTS
    assert set(table["layer"]) == set(range(BLOCKS))
    variants = table[["module", "window", "severed"]].drop_duplicates()
    assert len(variants) == 7
    for name, columns in (("aie", aie.AIE_COLUMNS), ("aie_severed", aie.SEVERED_COLUMNS)):
        found = pd.read_csv(f"reports/{name}.csv")
        assert tuple(found.columns) == columns
        assert found.drop(columns=["low", "high"]).notna().to_numpy().all()
    traced = read(Path("data/trace.parquet"))
    same = table[(table["module"] == "mlp") & (table["window"] == 1)].reset_index(drop=True)
    assert same["effect"].equals(traced["effect"])
    total = pd.read_csv("reports/ate.csv").iloc[0]
    p = traced.groupby("fact_id")[["p_clean", "p_corrupt"]].first()
    assert total["effect"] == pytest.approx((p["p_clean"] - p["p_corrupt"]).mean(), rel=1e-9)
    assert total["effect"] > 0.1  # the model knows these facts


def test_severing_takes_something_and_nothing_above_the_last_block() -> None:
    table = pd.read_csv("reports/aie_severed.csv")
    assert np.abs(table["taken"] - (table["intact"] - table["effect"])).max() < 1e-9
    assert table.loc[table["layer"] == BLOCKS - 1, "taken"].abs().max() < 1e-6
    assert (table.groupby("severed")["taken"].agg(lambda taken: taken.abs().max()) > 0.01).all()


def test_it_is_recorded_and_shown_for_as_long_as_it_is_of_this_run(tmp_path: Path) -> None:
    described, record = inputs.model(settings()), read_record(Path("data/measures/maps.json"))
    assert inputs.fits(settings(), "maps", record)
    assert record["model"] == described["fingerprint"]
    there = {(path.parent.name, path.stem.split(".")[0]) for path in Path("data/store").glob("*/*.parquet")}
    assert {(step, key) for step, key in record["units"]} >= {unit for unit in there if unit[0] == "severed"}
    assert list(record["tables"]) == list(MADE)
    own = tuple(extra for extra in extras.EXTRAS if extra.name == "maps")
    (section,) = extras.sections(Path("reports"), Path("data"), {"maps": {"fits": True}}, record["model"], 0.95, own)
    assert section.anchor == "maps"
    for plot in section.plots:
        assert plot.save(tmp_path, 60)[1].stat().st_size > 2000
    (other,) = extras.sections(Path("reports"), Path("data"), {"maps": {"fits": False}}, record["model"], 0.95, own)
    assert "made with other settings" in other.paragraphs[0]


def test_it_gives_the_same_bytes_whatever_was_there() -> None:
    before = {name: Path(name).read_bytes() for name in (*MADE, "data/measures/maps.json")}
    shutil.rmtree("data/store/severed")
    for path in sorted(Path("data/store/trace").glob("*.parquet"))[::3]:
        path.unlink()
    maps.main(settings())
    assert {name: Path(name).read_bytes() for name in before} == before
