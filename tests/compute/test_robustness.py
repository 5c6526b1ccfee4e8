"""The traces of stage robustness: shared with stage trace where they are the same, and resumed; who stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.compute import engine, inputs, maps_job, robustness
from pipeline.compute.corrupt_job import SCHEMA, CorruptJob
from pipeline.compute.fetch import opened
from pipeline.compute.store import Store
from pipeline.compute.trace_job import TraceJob
from pipeline.facts.fact import Fact
from pipeline.facts.readers import read_facts
from pipeline.lm.forward import resumes
from pipeline.settings.fields import CORRUPTIONS
from pipeline.settings.params import Params
from tests.conftest import TINY_FACTS
from tests.stages.projects import on_committed_model

SD, EMBEDDING_SD = 3.0, 1.0  # noise.multiple is 3


def settings(folder: Path, **changes: dict[str, Any]) -> Params:
    """presets/smoke.yaml on the committed model, with some keys of its sections changed."""
    return on_committed_model(folder, **changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    lm = opened(settings(tmp_path_factory.mktemp("model")))
    return lm.describe() | {"fast_path": resumes(lm)}


@pytest.fixture(scope="module")
def known() -> tuple[Fact, ...]:
    return tuple(read_facts("embedded", TINY_FACTS, 0))


@pytest.fixture(autouse=True)
def _upstream(monkeypatch: pytest.MonkeyPatch, known: tuple[Fact, ...]) -> None:
    """What the stages `model` and `facts` leave, which is not what is tried here."""
    monkeypatch.setattr(inputs, "sd", lambda params: params.noise.in_embedding_units(EMBEDDING_SD))
    monkeypatch.setattr(inputs, "known", lambda: known)


def test_only_what_the_run_has_not_is_traced_and_as_stage_trace_would(
    tmp_path: Path, model: dict[str, Any], known: tuple[Fact, ...]
) -> None:
    params, facts = settings(tmp_path), known[:2]
    pairs, weak, strong, read = (variant.job for variant in robustness.variants(params, model, facts))
    assert [unit.item[1:] for unit in pairs.units()] == [("attn", 1), ("hidden", 1), ("mlp", 3)] * 2
    own = {unit.key for unit in TraceJob(params, model, facts, SD).units()}
    other = settings(tmp_path, trace={"windows": [3]})
    trace = {unit.key for unit in TraceJob(other, model, facts, SD).units()}
    keys = {unit.key for unit in pairs.units()}
    assert trace < keys
    assert not own & keys
    (maps, _) = maps_job.jobs(settings(tmp_path), model, facts, SD)
    assert len(keys & {unit.key for unit in maps.units()}) == 6
    for job, multiple in ((weak, 1.0), (strong, 5.0)):
        noise = settings(tmp_path, noise={"multiple": multiple})
        expected = TraceJob(noise, model, facts, multiple * EMBEDDING_SD)
        assert [unit.key for unit in job.units()] == [unit.key for unit in expected.units()]
    assert [unit.item[1] for unit in read.units()] == list(CORRUPTIONS) * 2
    alone = {
        "modules": ["mlp"],
        "windows": [1],
        "multiples": [3.0],
        "corruptions": ["gaussian"],
        "metrics": ["probability"],
    }
    assert robustness.variants(settings(tmp_path, robustness=alone), model, facts) == []


def test_a_key_holds_what_changes_a_number_and_nothing_else(
    tmp_path: Path, model: dict[str, Any], known: tuple[Fact, ...]
) -> None:
    def keys(among: tuple[Fact, ...] = known, sd: float = SD, **changes: dict[str, Any]) -> list[str]:
        job = CorruptJob(settings(tmp_path, **changes), model, known[:1], among, sd, CORRUPTIONS)
        return [unit.key for unit in job.units()]

    first = keys()
    assert len(set(first)) == 3
    assert keys(robustness={"metrics": ["probability"], "windows": [1]}) == keys(edit={"layers": [0]}) == first
    for changed in (keys(sd=1.0), keys(noise={"samples": 4})):
        assert [one == other for one, other in zip(changed, first, strict=True)] == [False, True, True]
    assert [one == other for one, other in zip(keys(known[:3]), first, strict=True)] == [True, True, False]
    for changed in (keys(trace={"windows": [3]}), keys(compute={"path": "plain"})):
        assert not set(changed) & set(first)


def test_the_table_has_every_metric_and_an_interrupted_run_goes_on(
    tmp_path: Path, model: dict[str, Any], known: tuple[Fact, ...]
) -> None:
    params, store, fact = settings(tmp_path), Store(tmp_path / "store"), known[0]
    job = CorruptJob(params, model, (fact,), known, SD, CORRUPTIONS)
    whole = engine.run(job, store, (1, 1))
    assert whole.schema.equals(SCHEMA)
    table = whole.to_pandas()
    assert len(table.groupby(["corruption", "metric"], sort=False)) == 9
    assert (table.loc[table["corruption"] != "replace", "partner"] == "").all()
    (who,) = set(table.loc[table["corruption"] == "replace", "partner"])
    assert {other.fact_id: other for other in known}[who].target_true != fact.target_true
    assert np.allclose(table["effect"], table["restored"] - table["corrupt"])
    assert table["fraction"].between(0, 1).all()
    own = engine.run(TraceJob(params, model, (fact,), SD), store, (1, 1)).to_pandas()
    same = table[(table["corruption"] == "gaussian") & (table["metric"] == "probability")].reset_index(drop=True)
    assert np.abs(same["restored"] - own["p_restored"]).max() < 1e-6
    pd.testing.assert_frame_equal(same[["token", "token_role", "layer"]], own[["token", "token_role", "layer"]])
    for path in sorted((store.root / "corrupt").glob("*.parquet"))[::2]:
        path.unlink()
    assert engine.run(job, store, (1, 1)).equals(whole)


def test_a_fact_for_whose_subject_none_stands_in_has_no_rows(
    tmp_path: Path, model: dict[str, Any], known: tuple[Fact, ...]
) -> None:
    job = CorruptJob(settings(tmp_path), model, known[:1], known[:1], SD, ("replace",))
    table = engine.run(job, Store(tmp_path / "store"), (1, 1))
    assert table.num_rows == 0
    assert table.schema.equals(SCHEMA)


def test_the_plain_path_gives_the_same(tmp_path: Path, model: dict[str, Any], known: tuple[Fact, ...]) -> None:
    fast, plain = (
        engine.run(
            CorruptJob(settings(tmp_path, compute={"path": way}), model, known[:1], known, SD, ("zero", "replace")),
            Store(tmp_path / way),
            (1, 1),
        ).to_pandas()
        for way in ("fast", "plain")
    )
    numbers = ["clean", "corrupt", "restored", "effect"]
    assert np.abs(fast[numbers] - plain[numbers]).to_numpy().max() < 1e-3
    assert np.ptp(fast["effect"]) > 0.1
    told = ["fact_id", "corruption", "metric", "partner", "token", "layer"]
    pd.testing.assert_frame_equal(fast[told], plain[told])
