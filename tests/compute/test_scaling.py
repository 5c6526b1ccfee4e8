"""The scaling stage on the tests' own model: what it edits, and that it goes on where it stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.compute import beside, engine, inputs, scaling, statistics
from pipeline.compute import sequence_job as sequences
from pipeline.compute.batches import Batch, layer_of, mixture_batches, once_each, scaling_batches, unedited
from pipeline.compute.scaling_job import Made, ScalingJob, _Worker
from pipeline.compute.sequence_job import SequenceJob, updates
from pipeline.edit import methods
from pipeline.errors import UserError
from pipeline.facts.choose import KnownRule, choose, facts_to_frame, known_facts, trim
from pipeline.facts.fact import EMBEDDED, Fact, Known
from pipeline.facts.readers import read_facts
from pipeline.lm.load import load
from pipeline.measure.probabilities import Measurement, questions
from pipeline.settings.params import Params, check_against_model
from pipeline.tables import read_record, write, write_json
from stages import scaling as stage
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL

MODEL = {
    "name": str(TINY_MODEL), "source": str(TINY_MODEL), "fingerprint": "f" * 32, "layers": 6, "key_size": 384,
    "dtype": "float32", "add_bos": False, "fast_path": True,
}  # fmt: skip
TINY = {
    "counts": (1, 4, 1000), "facts": 3, "generate": 2, "generate_tokens": 14, "mixtures": 1, "mixture_edits": 4,
    "windows": (1, 3), "layers": (1, 4), "count": 2,
}  # fmt: skip


def with_section(params: Params, section: str, **changes: Any) -> Params:
    return params.model_copy(update={section: getattr(params, section).model_copy(update=changes)})


@pytest.fixture(scope="module")
def params() -> Params:
    params = methods.load(ROOT / "presets" / "smoke.yaml")
    params = with_section(params, "model", name=str(TINY_MODEL), device="cpu")
    params = with_section(params, "compute", workers=1, threads=1)
    params = with_section(params, "statistics", tokens=800, ridge=1e-3)
    return with_section(params, "scaling", **TINY)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    found = trim(read_facts(EMBEDDED, TINY_FACTS, 0), 2, 2)
    return [fact for fact in found if fact.relation in ("trade", "home")][:16]


@pytest.fixture(scope="module")
def folder(params: Params, facts: list[Fact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with what the stage reads."""
    root = tmp_path_factory.mktemp("scaling")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_json(MODEL, Path("data/model.json"))
        known = [Known(0.9, True, True)] * len(facts)
        write(
            facts_to_frame(facts, known, choose(facts, known, KnownRule("greedy", 1, 0), 3)), Path("data/facts.parquet")
        )
        ids = torch.randint(0, 500, (50, 16), generator=torch.Generator().manual_seed(0))
        beside.STATISTICS.parent.mkdir(parents=True)
        lm = load(str(TINY_MODEL), device="cpu")
        statistics.compute(
            lm, beside.edited(params, MODEL), beside.STATISTICS, MODEL, beside.widest_window(params), [ids]
        )
    return root


@pytest.fixture
def project(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(folder, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(sequences, "RUN", 3)
    monkeypatch.setattr(scaling, "RUN", 3)  # sequences of four are two runs
    return tmp_path / "project"


def test_the_papers_layers_are_at_the_same_depth(params: Params) -> None:
    own = with_section(params, "scaling", layer=None)
    gptj, other = {"family": "gptj", "layers": 28}, {"family": "llama", "layers": 48}
    assert [layer_of(own, method, gptj) for method in ("memit", "rome", "ft", "ft_1")] == [6, 5, 21, 5]
    assert [layer_of(own, method, other) for method in ("memit", "rome", "ft", "ft_l")] == [15, 17, 1, 0]
    assert layer_of(own, "ft", {"layers": 1}) == 0
    named = with_section(params, "scaling", layer=3)
    assert layer_of(named, "ft", MODEL) == 3
    with pytest.raises(UserError, match=r"scaling\.layer is 6 but must stay within 0 to 5"):
        check_against_model(with_section(params, "scaling", layer=6), 6, ["scaling"])


def test_small_numbers_are_made_again_on_other_facts(params: Params, facts: list[Fact]) -> None:
    found = scaling_batches(with_section(params, "scaling", counts=(1, 4, 17), facts=6), facts)
    assert [(batch.n_edits, batch.number) for batch in found] == [*((1, i) for i in range(6)), (4, 0), (4, 1)]
    for n in (1, 4):
        own = [fact for batch in found if batch.n_edits == n for fact in batch.facts]
        assert own == facts[: len(own)]  # each once, and the same ones first
    assert {name for batch in found for name in batch.written} == {fact.fact_id for fact in facts[:2]}
    whole = unedited(found)
    assert [fact for batch in whole for fact in batch.facts] == facts[:8]


def test_mixtures_take_half_of_each_relation(params: Params, facts: list[Fact]) -> None:
    found = {batch.study: batch for batch in mixture_batches(params, facts)}
    a, b = dict.fromkeys(fact.relation for fact in facts)
    assert set(found) == {a, b, f"{a}+{b}"}
    assert {len(batch.facts) for batch in found.values()} == {4}
    mixed = found[f"{a}+{b}"].facts
    assert [fact.relation for fact in mixed] == [a, b, a, b]
    assert all(fact in found[fact.relation].facts for fact in mixed)
    assert mixture_batches(with_section(params, "scaling", mixture_edits=40), facts) == []


def test_known_facts_beyond_the_runs_own(facts: list[Fact]) -> None:
    twin = Fact(**{**vars(facts[0]), "fact_id": "twin", "target_false": "Elsewhere"})
    every = [*facts[:4], twin]
    known = [Known(0.9, i != 1, True) for i in range(len(every))]
    frame = facts_to_frame(every, known, choose(every, known, KnownRule("greedy", 1, 0), 2))
    kept = set(frame.loc[frame["kept"], "fact_id"])
    found = [fact.fact_id for fact in once_each(known_facts(frame))]
    assert set(found[:2]) == kept
    assert facts[1].fact_id not in found  # not known
    assert ("twin" in found) + (facts[0].fact_id in found) == 1
    assert len(found) == 3


def test_the_stage_ends_with_its_tables_and_goes_on_where_it_stopped(
    project: Path, params: Params, facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("scaling", "relations", "mixtures", "places")
    stage.main(params)
    rows = pd.read_parquet("data/measures/scaling.parquet")
    written = {name: (project / "reports" / f"{name}.csv").read_bytes() for name in names}
    assert read_record(Path("data/measures/scaling.json"), model=str)["model"] == MODEL["fingerprint"]
    jobs = scaling.jobs(params, MODEL, once_each(inputs.known()))
    made = {(entry.step, entry.key) for entry in inputs.store(params).entries()}
    assert {(job.step, unit.key) for job in jobs for unit in job.units()} == made
    table = pd.read_csv("reports/scaling.csv")
    assert list(zip(table["method"], table["n_edits"], table["n_facts"], strict=True)) == [
        ("unedited", 0, 8),  # the facts of the mixture among them
        *((method, n, {1: 3, 4: 4, 1000: 0}[n]) for method in ("memit", "rome", "ft") for n in (1, 4, 1000)),
    ]
    assert set(table.loc[table["n_facts"] > 0, "n_texts"]) == {2}
    assert (rows["status"] == "ok").all()
    edited = table[(table["n_edits"] == 4)].set_index("method")
    plain = table.iloc[0]
    assert plain["ES"] == 0
    assert (edited.loc[["memit", "rome", "ft"], "ES"] > 0.5).all()
    assert len(pd.read_csv("reports/places.csv")) == 4
    assert len(pd.read_csv("reports/mixtures.csv")) == 1
    # The unedited rows are the plain model's probabilities.
    lm = load(str(TINY_MODEL), device="cpu")
    fact = facts[0]
    asked = Measurement(lm, questions(lm, fact, fact.target_false, fact.target_true, 0), None).plain(None)
    own = rows[(rows["method"] == "unedited") & (rows["fact_id"] == fact.fact_id)]
    assert np.allclose(own[["p_post", "p_baseline_post"]], asked, rtol=1e-4, atol=1e-9)

    # Half of the units gone, as after a stop: the rest is taken from the store, and the bytes are the same.
    stored = sorted((project / "data" / "store").glob("*/*.parquet"))
    for path in stored[::2]:
        path.unlink()
    done: list[str] = []
    for job in (SequenceJob, ScalingJob):
        monkeypatch.setattr(job, "worker", counted(job.worker, done))
    stage.main(params)
    assert 0 < len(done) < len(stored)
    assert {name: (project / "reports" / f"{name}.csv").read_bytes() for name in names} == written
    assert pd.read_parquet("data/measures/scaling.parquet").equals(rows)
    monkeypatch.setattr(engine, "local", None)  # nothing is left to compute
    stage.main(params)


def counted(worker: Any, done: list[str]) -> Any:
    def made(self: Any) -> Any:
        compute = worker(self)

        def one(unit: Any) -> Any:
            done.append(unit.label)
            return compute(unit)

        return one

    return made


def test_a_sequence_in_two_runs_is_that_of_one(
    project: Path, params: Params, facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = scaling.setting_of(params, MODEL, "rome")
    batch = Batch("scaling", 0, 4, tuple(facts[:4]), frozenset())
    (parts,) = scaling._in_sequence(setting, [batch])
    monkeypatch.setattr(scaling, "RUN", 4)
    (whole,) = scaling._in_sequence(setting, [batch])
    assert (len(parts.runs), len(whole.runs)) == (2, 1)
    one = [update for table in parts.runs for update in updates(table)]
    other = [update for table in whole.runs for update in updates(table)]
    assert len(one) == len(other) == 4
    assert all(torch.equal(a.matrix(), b.matrix()) for a, b in zip(one, other, strict=True))


def test_rounds_of_runs_share_the_work(project: Path, params: Params, facts: list[Fact]) -> None:
    """A long sequence has others beside it in each of its rounds, and each batch all of its facts, in order."""
    setting = scaling.setting_of(params, MODEL, "rome")
    sizes = (1, 1, 1, 1, 1, 1, 4, 8)
    batches = [Batch("scaling", i, n, tuple(facts[:n]), frozenset()) for i, n in enumerate(sizes)]
    rounds: list[list[int]] = []
    edited: dict[str, list[Fact]] = {}

    def make(job: SequenceJob) -> list[tuple[Any, ...]]:
        rounds.append([len(run.facts) for run in job.runs])
        for run in job.runs:
            edited.setdefault(run.label.split(" from ")[0], []).extend(run.facts)
        return [()] * len(job.runs)

    made = scaling._in_sequence(setting, batches, make)
    assert [of.batch for of in made] == batches
    assert edited == {batch.label: list(batch.facts) for batch in batches}
    assert rounds == [[3, 3, 1, 1], [3, 1, 1, 1], [2, 1, 1]]


@pytest.mark.parametrize("method", ["memit", "rome", "ft"])
def test_the_weights_come_back_bit_for_bit(project: Path, params: Params, facts: list[Fact], method: str) -> None:
    setting = scaling.setting_of(params, MODEL, method)
    batch = Batch("scaling", 0, 4, tuple(facts[:4]), frozenset({facts[0].fact_id}))
    (made,) = scaling._in_sequence(setting, [batch]) if method == "rome" else (Made(batch),)
    worker = _Worker(ScalingJob(params, MODEL, setting, (made,)))
    before = {name: value.clone() for name, value in worker.lm.model.state_dict().items()}
    frame = worker.frame(made)
    assert all(torch.equal(value, before[name]) for name, value in worker.lm.model.state_dict().items())
    assert (frame["n_edits"] == 4).all()
    own = frame[frame["prompt_kind"] == "rewrite"].set_index("fact_id")
    assert own["text"].map(bool).tolist() == [True, False, False, False]
    assert own["entropy"].notna().tolist() == [True, False, False, False]


def test_a_model_without_the_resumed_forward_is_told_so_before_anything_runs(
    project: Path, params: Params, facts: list[Fact]
) -> None:
    plain = with_section(params, "compute", path="plain")
    with pytest.raises(UserError, match=r"resumed forward only|of other settings"):
        scaling.many_at_once(plain, MODEL, facts)
    assert not Path("data/store").exists()
