"""The units of the maps: shared with stage trace where they are the same, each computed once, whatever was there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.compute import engine, maps_job
from pipeline.compute.fetch import opened
from pipeline.compute.store import Store
from pipeline.compute.trace_job import TraceJob
from pipeline.facts.fact import Fact
from pipeline.facts.known import fact_prompt
from pipeline.facts.readers import read_facts
from pipeline.lm.forward import resumes
from pipeline.lm.noise import NoiseTable
from pipeline.locate.severed import SeveredTrace
from pipeline.settings.params import Params
from pipeline.tables import to_arrow
from tests.conftest import TINY_FACTS
from tests.stages.projects import on_committed_model

SD = 1.0


def settings(folder: Path, **changes: dict[str, Any]) -> Params:
    """presets/smoke.yaml on the committed model, with some keys of its sections changed."""
    return on_committed_model(folder, **{"trace": {"modules": ["mlp"], "windows": [3]}, **changes})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    lm = opened(settings(tmp_path_factory.mktemp("model")))
    return lm.describe() | {"fast_path": resumes(lm)}


@pytest.fixture(scope="module")
def facts() -> tuple[Fact, ...]:
    return tuple(read_facts("embedded", TINY_FACTS, 0)[:3])


def ran(params: Params, model: dict[str, Any], facts: tuple[Fact, ...], store: Store) -> pd.DataFrame:
    """data/maps.parquet."""
    return maps_job.assembled(engine.run(job, store, (1, 1)) for job in maps_job.jobs(params, model, facts, SD))


def stored(store: Store) -> dict[str, int]:
    return {str(path.relative_to(store.root)): path.stat().st_mtime_ns for path in store.root.rglob("*.parquet")}


def test_units_are_those_of_trace_where_they_are_the_same(
    tmp_path: Path, model: dict[str, Any], facts: tuple[Fact, ...]
) -> None:
    params = settings(tmp_path)
    traces, severed = maps_job.jobs(params, model, facts, SD)
    found = [(unit.item[0].fact_id, *unit.item[1:]) for unit in traces.units()]
    variants = [("hidden", 1), ("mlp", 1), ("mlp", 3), ("attn", 1), ("attn", 3)]
    assert found == [(fact.fact_id, *variant) for fact in facts for variant in variants]
    keys = {unit.key for unit in traces.units()}
    assert len(keys) == len(found)
    trace = TraceJob(params, model, facts, SD)
    assert {unit.key for unit in trace.units()} < keys
    assert traces.step == trace.step
    assert [unit.item for unit in severed.units()] == [(fact, name) for fact in facts for name in ("mlp", "attn")]
    assert len({unit.key for unit in severed.units()} | keys) == len(found) + 6


def test_a_key_holds_what_changes_a_number_and_nothing_else(
    tmp_path: Path, model: dict[str, Any], facts: tuple[Fact, ...]
) -> None:
    def keys(**changes: dict[str, Any]) -> set[str]:
        (_, severed) = maps_job.jobs(settings(tmp_path, **changes), model, facts, SD)
        return {unit.key for unit in severed.units()}

    first = keys()
    assert keys(maps={"windows": [2]}) == keys(trace={"windows": [2]}) == keys(edit={"layers": [0]}) == first
    assert len(keys(maps={"severed": ["attn"]}) & first) == 3
    assert not keys(noise={"samples": 4}) & first
    assert not keys(compute={"path": "plain"}) & first
    assert not {unit.key for unit in maps_job.jobs(settings(tmp_path), model, facts, 2 * SD)[1].units()} & first


def test_count_takes_the_run_s_first_facts_and_nothing_severed_is_no_job(
    tmp_path: Path, model: dict[str, Any], facts: tuple[Fact, ...]
) -> None:
    (job,) = maps_job.jobs(settings(tmp_path, maps={"count": 2, "severed": []}), model, facts, SD)
    assert job.facts == facts[:2]
    assert {unit.item[0].fact_id for unit in job.units()} == {fact.fact_id for fact in facts[:2]}


def test_what_trace_computed_is_taken_and_an_interrupted_run_goes_on(
    tmp_path: Path, model: dict[str, Any], facts: tuple[Fact, ...]
) -> None:
    params, store, facts = settings(tmp_path), Store(tmp_path / "store"), facts[:2]
    trace = engine.run(TraceJob(params, model, facts, SD), store, (1, 1)).to_pandas()
    before = stored(store)
    assert len(before) == len(facts)
    whole = ran(params, model, facts, store)
    after = stored(store)
    assert len(after) == 7 * len(facts)
    assert before.items() <= after.items()  # none was written anew
    same = whole[(whole["module"] == "mlp") & (whole["window"] == 3)].reset_index(drop=True)
    pd.testing.assert_frame_equal(same[trace.columns.drop("fraction")], trace.drop(columns="fraction"))
    for name in sorted(after)[::2]:
        (store.root / name).unlink()
    again = ran(params, model, facts, store)
    assert to_arrow(again).equals(to_arrow(whole))
    assert set(stored(store)) == set(after)


def test_the_table_is_whole_and_severed_rows_are_those_of_the_severed_model(
    tmp_path: Path, model: dict[str, Any], facts: tuple[Fact, ...]
) -> None:
    params, fact = settings(tmp_path), facts[0]
    table = ran(params, model, (fact,), Store(tmp_path / "store"))
    assert list(table.columns) == maps_job.COLUMNS
    sizes = table.groupby(["module", "window", "severed"], sort=False).size()
    assert [*sizes.index][-2:] == [("hidden", 1, "mlp"), ("hidden", 1, "attn")]
    assert sizes.nunique() == 1
    assert table[["p_clean", "p_corrupt"]].drop_duplicates().shape[0] == 1
    assert np.allclose(table["effect"], table["p_restored"] - table["p_corrupt"])
    lm = opened(params)
    noise = NoiseTable(params.seed, fact.fact_id, SD, params.noise.samples, lm.embedding_width)
    expected = SeveredTrace(lm, fact_prompt(lm, fact), noise, params.noise.samples, "attn").plain("hidden", 1)
    rows = table[table["severed"] == "attn"]
    assert rows["p_restored"].to_numpy() == pytest.approx(expected.restored.ravel(), rel=1e-3, abs=1e-6)
    assert np.ptp(expected.restored) > 0.01


def test_the_plain_path_gives_the_same(tmp_path: Path, model: dict[str, Any], facts: tuple[Fact, ...]) -> None:
    maps, noise = {"windows": [3], "severed": ["attn"]}, {"samples": 1}
    fast, plain = (
        ran(settings(tmp_path, compute={"path": way}, maps=maps, noise=noise), model, facts[:1], Store(tmp_path / way))
        for way in ("fast", "plain")
    )
    numbers = ["p_clean", "p_corrupt", "p_restored", "effect"]
    pd.testing.assert_frame_equal(fast.drop(columns=numbers), plain.drop(columns=numbers))
    assert np.abs(fast[numbers] - plain[numbers]).to_numpy().max() < 1e-4
