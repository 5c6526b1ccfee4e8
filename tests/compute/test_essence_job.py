"""The essence stage's units: perplexities of the edit stage's own edits, alike on both paths and however computed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.compute import edit_job, engine, essence_job, pending
from pipeline.compute.essence_job import COLUMNS, EssenceJob
from pipeline.compute.keys import path
from pipeline.compute.store import Store
from pipeline.edit import methods
from pipeline.edit.methods import METHODS
from pipeline.edit.protocol import Edit
from pipeline.facts.choose import trim
from pipeline.facts.fact import Fact
from pipeline.facts.readers import read_facts
from pipeline.lm.forward import proven
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import tokenize
from pipeline.measure.edited import applied
from pipeline.measure.essence import Essence
from pipeline.settings.params import Params
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL
from tests.stages.projects import change, start, unit_moments, upstream

LENGTH, TEXTS, LAYERS = 14, 3, (0, 3, 5)
PROBLEMS = ("error_injection", "fact_erasure")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return proven(load(str(TINY_MODEL), device="cpu"))


@pytest.fixture(scope="module")
def folder(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("statistics")
    unit_moments(made, size=lm.arch.key_size(0), blocks=lm.n_layers)
    return made


def settings(path: str = "fast", **changes: Any) -> Params:
    whole = methods.load(ROOT / "presets" / "smoke.yaml")
    updates = {
        "model": whole.model.model_copy(update={"name": str(TINY_MODEL), "device": "cpu"}),
        "edit": whole.edit.model_copy(update={"layers": LAYERS, "problems": PROBLEMS}),
        "essence": whole.essence.model_copy(update={"texts": TEXTS, "tokens": LENGTH} | changes),
        "compute": whole.compute.model_copy(update={"path": path}),
    }
    params = whole.model_copy(update=updates)
    params._sections.update(whole.sections | {"rome": {**whole.sections["rome"], "steps": 4}})
    return params


def facts() -> tuple[Fact, ...]:
    return tuple(trim(read_facts("embedded", TINY_FACTS, 0)[:2], 1, 1))


def job_of(params: Params, folder: Path, of: tuple[Fact, ...] | None = None) -> EssenceJob:
    model = {"layers": 6, "fast_path": True, "source": str(TINY_MODEL), "fingerprint": "f"}
    made = {"source_key": "k"}, ("", "The ")
    return EssenceJob.of_run(params, model, facts() if of is None else of, 0.1, METHODS, made, folder)


def frame(job: EssenceJob) -> pd.DataFrame:
    work = job.worker()
    return pd.concat([work(unit).to_pandas() for unit in job.units()], ignore_index=True)


@pytest.fixture
def shared(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """One model for all workers, so that a weight which one of them leaves changed would be seen."""
    for module in (edit_job, essence_job):
        monkeypatch.setattr(module, "loaded", lambda params, model: replace(lm, fast=path(params, model) == "fast"))
    return lm


def test_perplexities_are_those_of_the_edit_stages_edits(
    shared: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[Edit]] = []
    whole = edit_job.EditWorker._edit

    def kept(self: Any, request: Any) -> list[Edit]:
        made.append(whole(self, request))
        return made[-1]

    monkeypatch.setattr(edit_job.EditWorker, "_edit", kept)
    job = job_of(settings(), folder)
    of_edits = [
        unit_job.worker()(unit).to_pandas().drop_duplicates("layer")
        for units in zip(*(each.units() for each in job.edits), strict=True)
        for unit_job, unit in zip(job.edits, units, strict=True)
    ]
    edits = [edit for group in made for edit in group]
    table = frame(job)
    assert list(table.columns) == list(COLUMNS)
    by_edits = pd.concat(of_edits, ignore_index=True)
    same = ["fact_id", "method", "problem", "layer", "status"]
    assert table[same].equals(by_edits[same])
    assert table["problem"].tolist() == [name for _ in range(2) for name in PROBLEMS for _ in LAYERS]
    texts = {fact.fact_id: Essence.sampled(shared, fact, 0, texts=TEXTS, length=LENGTH) for fact in facts()}
    for row, edit in zip(table.to_dict("records"), edits, strict=True):
        essence = texts[row["fact_id"]]
        assert row["perplexity_pre"] == pytest.approx(by_hand(shared, essence, None), rel=1e-4)
        assert row["perplexity_post"] == pytest.approx(by_hand(shared, essence, edit), rel=1e-3)
    last, others = table[table["layer"] == 5], table[table["layer"] != 5]
    assert (last["perplexity_post"] == last["perplexity_pre"]).all()  # ROME's edit of the last block changes nothing
    assert (others["perplexity_post"] != others["perplexity_pre"]).all()
    slow = frame(job_of(settings("plain"), folder))
    assert slow[same].equals(table[same])
    for column in ("perplexity_pre", "perplexity_post"):
        np.testing.assert_allclose(slow[column], table[column], rtol=1e-2)


def by_hand(lm: LanguageModel, essence: Essence, edit: Edit | None) -> float:
    """exp of transformers' own mean loss over each text's sampled tokens, mean over the texts."""
    found = []
    with applied(lm, edit), torch.no_grad():
        for ids, length in zip(essence.sequences, essence.lengths, strict=True):
            logs = lm.model(torch.tensor([ids])).logits[0, -length - 1 : -1].double().log_softmax(-1)
            found.append(float((-logs.gather(1, torch.tensor(ids[-length:])[:, None])).mean().exp()))
    return sum(found) / len(found)


def test_the_same_table_however_often_interrupted_and_on_however_many_workers(folder: Path, tmp_path: Path) -> None:
    job, store = job_of(settings(), folder), Store(tmp_path / "store")
    units = job.units()
    assert [unit.label for unit in units] == [
        f"{fact.fact_id} rome {problem}" for fact in facts() for problem in PROBLEMS
    ]
    third = job.worker()(units[2])  # without the first two: nothing hangs on what came before
    store.put_table(job.step, units[2].key, third, units[2].label)
    kept = next(entry.mtime for entry in store.entries())
    table = engine.run(job, store, (1, 1))
    assert min(entry.mtime for entry in store.entries()) == kept
    assert table.equals(engine.run(job, Store(tmp_path / "other"), (2, 1)))


def test_a_unit_s_key_has_what_its_numbers_rest_on(folder: Path) -> None:
    def keys(params: Params) -> tuple[str, ...]:
        return tuple(unit.key for unit in job_of(params, folder).units())

    def edit(**changes: Any) -> Params:
        params = settings()
        changed = params.model_copy(update={"edit": params.edit.model_copy(update=changes)})
        changed._sections.update(params.sections)
        return changed

    found = keys(settings())
    longer, rome = settings(), settings()
    rome._sections["rome"] = {**rome.sections["rome"], "steps": 5}
    others = [settings(tokens=LENGTH + 1), settings(texts=4), edit(layers=(0,)), rome]
    assert len({found, *(keys(params) for params in others)}) == 5
    assert keys(longer) == found
    assert keys(edit(text_tokens=7)) == keys(edit(collapse_nats=1.0)) == found  # of the edit stage's own measures
    assert keys(settings(count=1)) == found[:2]


def test_facts_that_are_not_edited_and_a_subject_that_leaves_no_room(shared: LanguageModel, folder: Path) -> None:
    first, second = facts()
    length = len(tokenize(shared.tokenizer, f"{first.subject} is a", add_bos=shared.add_bos).ids)
    unknown = replace(first, target_true=second.subject)
    table = frame(job_of(settings(), folder, (unknown,))).set_index("problem")
    assert table.loc["fact_erasure", "status"].str.startswith("dropped: p(true) is below 0.02").all()
    assert table.loc["fact_erasure", ["perplexity_pre", "perplexity_post"]].isna().all(axis=None)
    assert set(table.loc["error_injection", "status"]) == {"ok"}
    table = frame(job_of(settings(tokens=length), folder, (first,)))
    assert table["status"].str.match(rf"failed: fact {first.fact_id}: the prompt .* has {length} tokens").all()
    assert table["perplexity_post"].isna().all()


def test_status_lists_its_units_once_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start()
    params, store = change(), Store("data/store")
    upstream()
    assert "essence" not in pending.steps(params, store)
    found = pending.steps(params, store)
    (store.root / "essence").mkdir()
    begun = pending.steps(params, store)
    assert list(begun) == [*found, "essence"]
    assert len(begun["essence"]) == sum(len(units) for step, units in found.items() if step.startswith("edit-"))
