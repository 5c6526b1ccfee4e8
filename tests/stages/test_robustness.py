"""Stage `robustness` itself, after the stages that it builds on, on the committed model; its edits are made up."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.robustness import ROBUSTNESS_COLUMNS, TRACED
from pipeline.analysis.scores import trace_measures
from pipeline.compute import inputs
from pipeline.edit import methods
from pipeline.report import extras
from pipeline.settings.params import Params
from pipeline.tables import SCORES, TEXT, TRUTH, read, read_record, write
from stages import facts, model, robustness, trace
from tests.conftest import TINY_FACTS
from tests.stages.projects import on_committed_model

FACTS = 4
MADE = ("data/robustness.parquet", "reports/robustness.csv", "reports/robustness_count.csv")
ASKED = {
    "modules": ["mlp"], "windows": [1, 3], "multiples": [3.0], "corruptions": ["gaussian", "replace"],
    "metrics": ["probability", "logit_difference"], "measures": ["fraction"], "concentrated": None, "success": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages have run."""
    folder = tmp_path_factory.mktemp("run")
    on_committed_model(
        folder,
        facts={"path": str(TINY_FACTS), "count": FACTS},
        compute={"workers": 1},
        regressions={"bootstrap_samples": 40, "permutations": 40},
        robustness=ASKED,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in (model, facts, trace):
            stage.main(settings())
        write(edited(), Path("data/scores.parquet"))
        robustness.main(settings())
    return folder


def edited() -> pd.DataFrame:
    """scores.parquet of one method and problem, with scores that no edit gave."""
    measured = trace_measures(read(Path("data/trace.parquet")))
    measured = measured.rename(columns={"module": "trace_module", "window": "trace_window"})
    fixed = {
        "relation": "r",
        "problem": "error_injection",
        "method": "rome",
        "window": 1,
        "acts": True,
        "collapsed": False,
    }
    scores = measured.assign(**fixed, rewrite=np.random.default_rng(0).uniform(size=len(measured)))
    empty = {name: np.nan for name, kind in SCORES.items() if name not in scores and kind not in (TEXT, TRUTH)}
    return scores.assign(**empty)[list(SCORES)]


@pytest.fixture(autouse=True)
def _there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)


def settings() -> Params:
    return methods.load("params.yaml")


def test_the_tables_are_whole() -> None:
    traced = read(Path("data/robustness.parquet"), TRACED)
    variations = [("run", ""), ("window", "3"), *(
        ("corruption and metric", told)
        for told in ("gaussian, logit_difference", "replace, probability", "replace, logit_difference")
    )]  # fmt: skip
    found = traced[["variation", "value"]].drop_duplicates()
    assert list(found.itertuples(index=False, name=None)) == variations
    assert (traced.groupby(["variation", "value"])["fact_id"].nunique() == FACTS).all()
    own, again = (traced[(traced["variation"] == name) & (traced["value"] == value)]["fraction"].to_numpy()
                  for name, value in variations[:2])  # fmt: skip
    assert not np.allclose(own, again)
    table = pd.read_csv("reports/robustness.csv", keep_default_na=False)
    assert tuple(table.columns) == ROBUSTNESS_COLUMNS
    # all facts are answered greedily and with p > 0.1 by this model, so that none is left out
    assert list(zip(table["variation"], table["value"], strict=True))[: len(variations)] == variations
    assert (table["n_facts"].astype(int) <= FACTS).all()
    assert table.loc[table["variation"] == "run", "n_left_out"].tolist() == [0]


def test_it_is_recorded_and_shown_for_as_long_as_it_is_of_this_run() -> None:
    record = read_record(Path("data/measures/robustness.json"))
    assert inputs.fits(settings(), "robustness", record)
    assert list(record["tables"]) == list(MADE)
    there = {(path.parent.name, path.stem.split(".")[0]) for path in Path("data/store").glob("*/*.parquet")}
    assert {(step, key) for step, key in record["units"]} >= {unit for unit in there if unit[0] == "corrupt"}
    other = settings().model_copy(update={"trace": settings().trace.model_copy(update={"windows": (2,)})})
    assert not inputs.fits(other, "robustness", record)
    own = tuple(extra for extra in extras.EXTRAS if extra.name == "robustness")
    fits = {"robustness": {"fits": True}}
    (section,) = extras.sections(Path("reports"), Path("data"), fits, record["model"], 0.95, own)
    assert section.paragraphs[0].startswith("Not known: no row is of 10 facts or more")
    assert [plot.name for plot in section.plots] == ["robustness"]


def test_it_gives_the_same_bytes_whatever_was_there() -> None:
    before = {name: Path(name).read_bytes() for name in (*MADE, "data/measures/robustness.json")}
    shutil.rmtree("data/store/trace")
    for path in sorted(Path("data/store/corrupt").glob("*.parquet"))[::2]:
        path.unlink()
    robustness.main(settings())
    assert {name: Path(name).read_bytes() for name in before} == before
