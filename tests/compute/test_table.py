"""The table stage: its facts apart from those that layers are chosen on, its unedited row, and a run that goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from pipeline.analysis.table import TABLE_COLUMNS
from pipeline.compute import inputs, runs, table
from pipeline.compute.pending import beside
from pipeline.compute.table_job import WRITTEN, unedited
from pipeline.compute.work import Job
from pipeline.edit import methods
from pipeline.errors import UserError
from pipeline.facts.choose import facts_to_frame
from pipeline.facts.fact import Known
from pipeline.facts.readers import read_facts
from pipeline.lm.forward import proven
from pipeline.lm.load import load
from pipeline.measure.generation import TfIdf, reference_score
from pipeline.measure.probabilities import Measurement, questions
from pipeline.settings.params import Params
from pipeline.tables import BEST, TABLE_TEXTS, UNEDITED, read, write
from stages import facts as facts_stage
from stages import model as model_stage
from stages import moments as moments_stage
from stages import table as stage
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL
from tests.facts.made import counterfact, fact, write_json
from tests.stages.projects import change

MADE = [*stage.MEASURES, *stage.TABLES]
METHODS, LAYERS, COUNT, APART = ["ft", "kn", "rome"], [0, 4], 3, 2


@given(known=st.integers(0, 80), count=st.integers(1, 60), choose_on=st.integers(1, 30))
def test_no_fact_is_reported_that_a_layer_was_chosen_on(known: int, count: int, choose_on: int) -> None:
    every = [fact(f"f{i}") for i in range(known)]
    if known <= choose_on:
        with pytest.raises(UserError, match=rf"the model knows {known} of the facts .* needs {choose_on} "):
            table.deal(every, count, choose_on)
        return
    shown, others = table.deal(every, count, choose_on)
    assert not set(shown) & set(others)
    assert len(others) == choose_on
    assert list(shown) == every[: min(count, known - choose_on)]  # the run's own are the first


def test_the_unedited_row_is_the_plain_forward() -> None:
    lm = proven(load(str(TINY_MODEL), device="cpu", dtype="float64"))
    assert lm.fast
    for one in read_facts("embedded", TINY_FACTS, 0)[:3]:
        rows = unedited(lm, one)
        plain = Measurement(lm, questions(lm, one, one.target_false, one.target_true, 0), None).plain(None)
        for columns in (["p_pre", "p_baseline_pre"], ["p_post", "p_baseline_post"]):
            assert rows[columns].to_numpy() == pytest.approx(plain, rel=1e-9)
        assert set(rows["method"]) == {UNEDITED}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all stages up to this one have run on the tests' own model."""
    folder = tmp_path_factory.mktemp("table")
    yaml = YAML()
    tree = yaml.load((ROOT / "presets" / "smoke.yaml").read_text("utf-8"))
    tree["model"] |= {"name": str(TINY_MODEL), "device": "cpu"}
    tree["facts"] |= {"path": str(TINY_FACTS), "count": 2, "max_paraphrases": 1, "max_neighborhood": 2}
    tree["statistics"]["tokens"] = 1200
    tree["table"] |= {"methods": METHODS, "layers": LAYERS, "count": COUNT, "choose_on": APART}
    tree["table"] |= {"generate_tokens": 6, "generate_prompts": 2}
    tree["scaling"] |= {"methods": ["rome"], "layers": [0]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Path("params.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(tree, file)
        for one in (model_stage, facts_stage, moments_stage, stage):
            one.main(methods.load())
    return folder


def test_a_run_makes_the_rows_that_are_asked_for(project: Path) -> None:
    found = pd.read_csv(project / "reports" / "counterfact.csv")
    assert list(found.columns) == list(TABLE_COLUMNS)
    assert list(found["method"]) == ["unedited", "ft", "ft", "kn", "kn", "rome", "rome"]
    assert list(found["chosen"]) == [UNEDITED, *[BEST, table.PAPERS] * 3]
    assert set(found["n_facts"]) == {COUNT}
    layers = found["layer"]
    assert layers.isna().tolist() == [True, False, False, False, True, False, False]  # KN's published edit is of all
    assert (layers[2], layers[6]) == (0, 2)  # of 6 blocks, the depth of block 1, and of 17, of 48
    assert set(layers[[1, 3, 5]]) <= set(LAYERS)
    assert found[["S", "ES", "PS", "NS", "GE", "RS"]].notna().all().all()
    edits, texts = read(project / stage.MEASURES[0]), read(project / stage.MEASURES[1], TABLE_TEXTS)
    assert not (edits["prompt_kind"] == WRITTEN).any()
    assert edits["fact_id"].nunique() == texts["fact_id"].nunique() == COUNT
    per_fact = texts.groupby("fact_id").size()
    assert set(per_fact) == {2 * len(found[["method", "layer"]].drop_duplicates())}
    same = texts[texts["method"] == UNEDITED]
    assert (same["before"] == same["after"]).all()
    assert (texts["before"] != texts["after"]).any()
    tried = pd.read_csv(project / "reports" / "counterfact_layers.csv")
    assert list(zip(tried["method"], tried["layer"], strict=True)) == [(m, at) for m in METHODS for at in LAYERS]
    assert set(tried["n_facts"]) == {APART}
    record = json.loads((project / "data" / "measures" / "table.json").read_text())
    assert set(record["tables"]) == {str(path) for path in MADE}


def test_an_interrupted_run_goes_on_to_the_same_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    before = {path: path.read_bytes() for path in MADE}
    units = {path: path.stat().st_mtime_ns for path in Path("data/store/table").glob("*.parquet")}
    assert len(units) == COUNT
    lost = min(units)
    for path in (lost, *MADE):
        path.unlink()
    stage.main(methods.load())
    assert {path: path.read_bytes() for path in MADE} == before
    assert [path for path in units if path.stat().st_mtime_ns != units[path]] == [lost]


class Stopped(Exception):
    pass


def test_what_a_stopped_run_has_computed_is_no_rubbish(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers' units are known as it begins, the table's once layers are chosen: both before they are computed."""
    monkeypatch.chdir(project)
    record = Path("data/measures/table.json").read_bytes()
    Path("data/measures/table.json").unlink()
    params, run, ran = methods.load(), runs.run, []

    def stopping(job: Job) -> pa.Table:
        if job.step == "table":
            raise Stopped
        ran.append(job)
        return run(job)

    def kept() -> set[tuple[str, str]]:
        return beside(params, {"trace": ()})

    assert not any(step == "table" for step, _ in kept())
    monkeypatch.setattr(runs, "run", stopping)
    with pytest.raises(Stopped):
        stage.main(params)
    needed = kept()
    assert {(job.step, unit.key) for job in ran for unit in job.units()} <= needed
    assert {path.name.split(".")[0] for path in Path("data/store/table").glob("*.parquet")} == {
        name for step, name in needed if step == "table"
    }
    change(table={"choose_on": APART - 1})  # other settings need none of it
    assert not any(step == "table" for step, _ in beside(methods.load(), {"trace": ()}))
    change(table={"choose_on": APART})
    monkeypatch.setattr(runs, "run", run)
    stage.main(params)
    assert Path("data/measures/table.json").read_bytes() == record
    assert inputs.begun() == []


# What texts are scored against

ROWS = [("unedited", -1, "the Atlantic tide"), ("rome", 2, "the Baltic sea and amber")]


def texts_of(params: Params) -> pd.DataFrame:
    made = [
        {"fact_id": "counterfact-7", "method": method, "layer": layer, "prompt_kind": kind, "prompt_index": i}
        | {"prompt": "Loire is" if kind == WRITTEN else "", "text": f" {text} {i}." if kind == WRITTEN else ""}
        for method, layer, text in ROWS
        for kind, i in (("rewrite", 0), (WRITTEN, 0), (WRITTEN, 1))
    ]
    return table.texts(params, pd.DataFrame(made))


def of(params: Params, **changes: Any) -> Params:
    return params.model_copy(update={"table": params.table.model_copy(update=changes)})


def test_rs_is_against_other_facts_or_the_published_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = {"target_true": {"str": "Baltic", "id": "Q2"}, "target_new": {"str": "Aral", "id": "Q9"}}
    path = write_json(tmp_path, [counterfact(), counterfact(case_id=8, subject="Oder", **other)])
    known = read_facts("counterfact", path, 0)
    write(facts_to_frame(known, [Known(0.9, True, True)] * 2, [(True, "")] * 2), Path("data/facts.parquet"))
    params = methods.load(ROOT / "presets" / "smoke.yaml")
    params = params.model_copy(
        update={"facts": params.facts.model_copy(update={"source": "counterfact", "path": str(path)})}
    )
    texts = texts_of(params)
    assert list(texts["before"]) == [f" {ROWS[0][2]} {i}." for i in (0, 1)] * 2
    assert list(texts["after"]) == [f" {text} {i}." for _, _, text in ROWS for i in (0, 1)]
    stated = ["The river Oder flows into the Baltic.", *(f"{text} Baltic." for text in known[1].paraphrases)]
    mine = ["The river Loire flows into the Atlantic.", *(f"{text} Atlantic." for text in known[0].paraphrases)]

    def scores(references: list[str], corpus: list[str]) -> list[float]:
        said = [[f"Loire is {text} {i}." for i in (0, 1)] for _, _, text in ROWS]
        return [reference_score(text, references, TfIdf(corpus)) for text in said for _ in (0, 1)]

    assert list(texts["reference"]) == pytest.approx(scores(stated, [*mine, *stated]))
    snippets = tmp_path / "snippets.json"
    sea, other_sea = "The Baltic has amber.", "The Aral has shrunk."
    entries = [("P403", "Q2", sea), ("P403", "Q9", other_sea), ("P27", "Q2", other_sea)]
    snippets.write_text(
        json.dumps([{"relation_id": r, "target_id": t, "samples": [{"text": text}]} for r, t, text in entries])
    )
    texts = texts_of(of(params, snippets=str(snippets)))
    assert list(texts["reference"]) == pytest.approx(scores([sea], [sea, other_sea, other_sea]))
    snippets.write_text("[]")
    assert np.isnan(texts_of(of(params, snippets=str(snippets)))["reference"]).all()
