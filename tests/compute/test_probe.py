"""The text that edits are tried on: as long as asked for, of its own seed, refused where it does not fit; and its way
through the edit job.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.compute import edit_job, probe
from pipeline.compute.edit_job import EditJob
from pipeline.compute.keys import path
from pipeline.edit import methods
from pipeline.edit.methods import METHODS
from pipeline.edit.text import text_batches
from pipeline.errors import UserError
from pipeline.facts.readers import read_facts
from pipeline.lm.forward import Recording, proven, record
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel
from pipeline.measure import likelihood
from pipeline.settings.params import Params
from pipeline.tables import EDITS, read_json, write_json
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL
from tests.stages.projects import unit_moments


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return proven(load(str(TINY_MODEL), device="cpu"))


@pytest.fixture
def params() -> Params:
    return methods.load(ROOT / "presets" / "smoke.yaml")


def with_(params: Params, **edit: Any) -> Params:
    changed = params.model_copy(update={"edit": params.edit.model_copy(update=edit)})
    changed._sections.update(params.sections)
    return changed


def model_of(lm: LanguageModel) -> dict[str, Any]:
    return lm.describe() | {"fast_path": True}


@pytest.mark.parametrize(
    ("tokens", "length", "pieces"), [(40, 16, [14, 13, 13]), (3, 2, [2, 1]), (16, 16, [16]), (2, 64, [2]), (0, 16, [])]
)
def test_it_has_as_many_tokens_as_asked_for(lm: LanguageModel, tokens: int, length: int, pieces: list[int]) -> None:
    assert [len(piece) for piece in probe.sampled(lm, tokens, length, 0)] == pieces


def test_it_is_seeded_and_no_text_of_the_second_moments(lm: LanguageModel) -> None:
    text = probe.sampled(lm, 64, 16, 0)
    assert text == probe.sampled(lm, 64, 16, 0) != probe.sampled(lm, 64, 16, 1)
    (moments,) = text_batches(lm, "model", 64, 16, 1.0, 0, lambda tokens: None)
    assert all(list(piece) != other for piece, other in zip(text, moments.tolist(), strict=True))


def test_it_is_written_and_read_for_these_settings_only(lm: LanguageModel, params: Params, tmp_path: Path) -> None:
    params, model = with_(params, text_tokens=40), model_of(lm)
    assert not probe.present(params, model, tmp_path)
    probe.compute(lm, params, model, tmp_path)
    assert probe.read_for(params, model, tmp_path) == probe.sampled(lm, 40, 16, params.seed)
    assert probe.present(with_(params, collapse_nats=2.0), model, tmp_path)
    for other, of in ((with_(params, text_tokens=41), model), (params, model | {"fingerprint": "0"})):
        assert not probe.present(other, of, tmp_path)
        with pytest.raises(UserError, match=r"probe\.json is of other settings, another model or another version"):
            probe.read_for(other, of, tmp_path)
    path = tmp_path / "probe.json"
    good = read_json(path)
    for ids in ([[1, 2]], [["a"] * 40], [1] * 40, [[True] * 40]):
        write_json(good | {"ids": ids}, path)
        with pytest.raises(UserError, match="must hold lists of 40 token ids in all"):
            probe.read_for(params, model, tmp_path)


def job_of(params: Params, lm: LanguageModel, folder: Path, text: tuple[tuple[int, ...], ...]) -> EditJob:
    facts = tuple(replace(fact, neighborhood=()) for fact in read_facts("embedded", TINY_FACTS, 0)[:2])
    unit_moments(folder, size=lm.arch.key_size(0), blocks=lm.n_layers)
    made = {"source_key": "k"}
    return EditJob(params, model_of(lm), facts, 0.1, METHODS["rome"], "error_injection", made, ("",), folder, text)


def test_what_counts_as_collapsed_recomputes_no_edit(lm: LanguageModel, params: Params, tmp_path: Path) -> None:
    text = probe.sampled(lm, 40, 16, 0)

    def keys(settings: Params, of: tuple[tuple[int, ...], ...] = text) -> list[str]:
        return [unit.key for unit in job_of(settings, lm, tmp_path, of).units()]

    assert keys(params) == keys(with_(params, collapse_nats=7.0))
    others = ((), text[:1], ((*text[0][:-1], 1), *text[1:]), ((*text[0], *text[1]), *text[2:]))
    found = [tuple(keys(params)), *(tuple(keys(params, other)) for other in others)]
    assert len(set(found)) == len(found)


def test_the_edit_job_measures_each_edit_and_runs_the_text_once(
    lm: LanguageModel, params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def counted(*of: Any) -> Recording:
        runs.append(1)
        return record(*of)

    monkeypatch.setattr(edit_job, "loaded", lambda params, model: replace(lm, fast=path(params, model) == "fast"))
    monkeypatch.setattr(likelihood, "record", counted)
    params = with_(params, layers=(0, 2, 5))
    tables = {}
    for name, of, text in (
        ("fast", params, probe.sampled(lm, 40, 16, 0)),
        ("none", params, ()),
        ("plain", plain(params), probe.sampled(lm, 40, 16, 0)),
    ):
        job = job_of(of, lm, tmp_path, text)
        work = job.worker()
        tables[name] = [work(unit).to_pandas() for unit in job.units()]
    assert runs == [1]
    for fast, none, slow in zip(*tables.values(), strict=True):
        assert list(fast.columns) == list(EDITS)
        assert set(fast["update_key"]) == {"prompt"}
        assert none[["text_loss_pre", "text_loss_post"]].isna().all(axis=None)
        rows = [table.drop_duplicates("layer").set_index("layer") for table in (fast, none, slow)]
        for column in ("denominator", "update_norm"):
            assert rows[0][column].notna().all()
            assert (rows[0][column] == rows[1][column]).all()
        loss = rows[0]["text_loss_post"] - rows[0]["text_loss_pre"]
        assert loss[5] == 0  # ROME's edit of the last block changes nothing
        assert (loss[:2] != 0).all()
        assert (rows[0]["update_norm"] > 0).tolist() == [True, True, False]
        # Twenty steps of Adam carry rounding far.
        np.testing.assert_allclose(rows[2]["text_loss_pre"], rows[0]["text_loss_pre"], rtol=1e-5)
        np.testing.assert_allclose(rows[2]["text_loss_post"], rows[0]["text_loss_post"], atol=0.05)


def plain(params: Params) -> Params:
    changed = params.model_copy(update={"compute": params.compute.model_copy(update={"path": "plain"})})
    changed._sections.update(params.sections)
    return changed
