"""Text for the second moments: the same tokens whoever samples it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.compute import engine, statistics
from pipeline.compute.store import Store
from pipeline.compute.text_job import TextJob
from pipeline.edit import methods, text
from pipeline.lm.load import load
from pipeline.settings.params import Params
from tests.conftest import ROOT
from tests.lm.families import random_model


@pytest.fixture
def job(tmp_path: Path) -> TextJob:
    lm = random_model("llama", torch.float32)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    settings = methods.load(ROOT / "presets" / "smoke.yaml")
    named = {"name": str(tmp_path / "model"), "device": "cpu"}
    settings = settings.model_copy(
        update={
            "model": settings.model.model_copy(update=named),
            "statistics": settings.statistics.model_copy(update={"tokens": 2400, "sequence_length": 12}),
        }
    )
    model = {"fingerprint": "m", "source": str(tmp_path / "model"), "layers": 4, "fast_path": True}
    return TextJob(settings, model)


def test_one_worker_and_two_and_none_sample_the_same_text(job: TextJob, tmp_path: Path) -> None:
    assert len(job.units()) == 3
    one = job.read(engine.run(job, Store(tmp_path / "one"), (1, 1)))
    two = job.read(engine.run(job, Store(tmp_path / "two"), (2, 1)))
    settings = job.params.statistics
    lm = load(job.model["source"], device="cpu")
    here = text.text_batches(
        lm, "model", settings.tokens, settings.sequence_length, settings.temperature, job.params.seed, lambda n: None
    )
    for found in (two, here):
        assert [batch.shape for batch in found] == [(96, 12), (96, 12), (8, 12)]
        assert all(torch.equal(a, b) for a, b in zip(one, found, strict=True))


def test_an_interrupted_run_goes_on_from_the_batches_that_there_are(
    job: TextJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, first = Store(tmp_path / "store"), job.units()[0]
    store.put_table(job.step, first.key, job.worker()(first), first.label)
    computed = []
    worker = job.worker()

    def counted(unit: Any) -> Any:
        computed.append(unit.label)
        return worker(unit)

    monkeypatch.setattr(TextJob, "worker", lambda self: counted)
    engine.run(job, store, (1, 1))
    assert computed == ["pieces 96 to 191", "pieces 192 to 199"]


def test_a_worker_takes_one_thread(job: TextJob) -> None:
    torch.set_num_threads(2)
    try:
        job.worker()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_statistics_of_a_text_are_keyed_by_what_decides_it(job: TextJob) -> None:
    def with_(**changes: Any) -> Params:
        return job.params.model_copy(update={"statistics": job.params.statistics.model_copy(update=changes)})

    keys = {
        TextJob(p, job.model).units()[0].key for p in (job.params, with_(temperature=0.5), with_(sequence_length=8))
    }
    assert len(keys) == 3
    assert statistics.key_of(job.params, job.model, 1) != statistics.key_of(with_(temperature=0.5), job.model, 1)
