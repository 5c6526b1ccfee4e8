"""The override stage's units: against whole forwards of a really changed model, and however computed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.analysis.override import OVERRIDE
from pipeline.compute import edit_job, engine, override_job, pending
from pipeline.compute.keys import path
from pipeline.compute.override_job import MEASURED, OverrideJob
from pipeline.compute.store import Store
from pipeline.edit import methods
from pipeline.edit.methods import METHODS
from pipeline.edit.protocol import Edit
from pipeline.errors import UserError
from pipeline.facts.choose import trim
from pipeline.facts.fact import Fact
from pipeline.facts.known import fact_prompt
from pipeline.facts.readers import read_facts
from pipeline.lm.forward import proven
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.noise import NoiseTable, subject_noise
from pipeline.lm.prompts import tokenize
from pipeline.locate.tracing import FactTrace
from pipeline.measure.edited import applied
from pipeline.settings.params import Params
from pipeline.tables import read, write
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL
from tests.stages.projects import change, start, unit_moments, upstream

LAYERS, WINDOW, SAMPLES, SD = (0, 3), 3, 2, 1.0


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return proven(load(str(TINY_MODEL), device="cpu"))


@pytest.fixture(scope="module")
def folder(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("statistics")
    unit_moments(made, size=lm.arch.key_size(0), blocks=lm.n_layers)
    return made


def settings(path: str = "fast", edit: dict[str, Any] | None = None, **changes: Any) -> Params:
    """presets/smoke.yaml on the committed model; changes: of section override."""
    whole = methods.load(ROOT / "presets" / "smoke.yaml")
    own = {"layers": LAYERS, "window": WINDOW, "count": None}
    updates = {
        "model": whole.model.model_copy(update={"name": str(TINY_MODEL), "device": "cpu"}),
        "noise": whole.noise.model_copy(update={"samples": SAMPLES}),
        "edit": whole.edit.model_copy(update=edit or {}),
        "override": whole.override.model_copy(update=own | changes),
        "compute": whole.compute.model_copy(update={"path": path}),
    }
    params = whole.model_copy(update=updates)
    params._sections.update(whole.sections | {"rome": {**whole.sections["rome"], "steps": 5}})
    return params


def facts() -> tuple[Fact, ...]:
    return tuple(trim(read_facts("embedded", TINY_FACTS, 0)[:2], 1, 1))


def job_of(params: Params, folder: Path, of: tuple[Fact, ...] | None = None, sd: float = SD) -> OverrideJob:
    model = {"layers": 6, "fast_path": True, "source": str(TINY_MODEL), "fingerprint": "f"}
    made = {"source_key": "k"}, ("", "The ")
    return OverrideJob.of_run(params, model, facts() if of is None else of, sd, METHODS, made, folder)


def frame(job: OverrideJob) -> pd.DataFrame:
    work = job.worker()
    return pd.concat([work(unit).to_pandas() for unit in job.units()], ignore_index=True)


@pytest.fixture
def shared(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """One model for all workers, so that a weight which one of them leaves changed would be seen."""
    monkeypatch.setattr(override_job, "loaded", lambda params, model: replace(lm, fast=path(params, model) == "fast"))
    return lm


class ByHand:
    """One object after one fact's prompt, by nothing but transformers' forward, one row at a time."""

    def __init__(self, lm: LanguageModel, fact: Fact, target: str):
        self.lm, self.fact = lm, fact
        at: dict[str, Any] = {
            "subject": fact.subject,
            "subject_at": fact.subject_at,
            "target": target,
            "add_bos": lm.add_bos,
        }
        self.prompt = tokenize(lm.tokenizer, fact.text, **at)
        assert self.prompt.subject is not None
        self.first, self.end = self.prompt.subject

    def p(self, mlps: dict[int, torch.Tensor] | None = None, tokens: slice | None = None, draw: int = -1) -> float:
        """p(target) with these MLP outputs, by block, in place at the tokens, or at the subject's last."""
        where = tokens or slice(self.end - 1, self.end)

        def put(value: torch.Tensor) -> Callable[..., torch.Tensor]:
            def hook(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
                output = output.clone()
                output[0, where] = value[where]
                return output

            return hook

        def noised(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            tokens, width = self.end - self.first, output.shape[-1]
            drawn = subject_noise(0, self.fact.fact_id, SAMPLES, tokens, width, "score")
            output = output.clone()
            output[0, self.first : self.end] += SD * drawn[draw]
            return output

        with ExitStack() as stack, torch.no_grad():
            for layer, value in (mlps or {}).items():
                stack.callback(self.lm.arch.mlp_ends[layer].register_forward_hook(put(value)).remove)
            if draw >= 0:
                stack.callback(self.lm.arch.embedding.register_forward_hook(noised).remove)
            logs = self.lm.model(torch.tensor([self.prompt.ids])).logits[0].double().log_softmax(-1)
        return float(sum(logs[r, t] for r, t in zip(self.prompt.reads, self.prompt.target_ids, strict=True)).exp())

    def outputs(self) -> list[torch.Tensor]:
        """The MLPs' outputs without noise, L tensors (T, d)."""
        found: list[torch.Tensor] = []
        with ExitStack() as stack, torch.no_grad():
            for module in self.lm.arch.mlp_ends:
                stack.callback(module.register_forward_hook(lambda _m, _a, out: found.append(out[0].clone())).remove)
            self.lm.model(torch.tensor([self.prompt.ids]))
        return found


def test_every_number_is_that_of_the_really_changed_model(
    shared: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Edit] = []
    whole = edit_job.EditWorker.edited

    def kept(self: Any, fact: Fact) -> Any:
        found = whole(self, fact)
        made.extend(found[1])
        return found

    monkeypatch.setattr(edit_job.EditWorker, "edited", kept)
    before = {name: value.clone() for name, value in shared.model.state_dict().items()}
    (fact, *_) = facts()
    table = frame(job_of(settings(), folder, (fact,)))
    assert all(torch.equal(value, before[name]) for name, value in shared.model.state_dict().items())
    assert set(OVERRIDE) == set(table.columns)
    old = int(table["old_layer"].iloc[0])
    assert [edit.layer for edit in made] == sorted({*LAYERS, old})
    for name, target in (("new", fact.target_false), ("true", fact.target_true)):
        asked = ByHand(shared, fact, target)
        unedited, p_pre = asked.outputs(), asked.p()
        for edit in (None, *made):
            at = -1 if edit is None else edit.layer
            rows = table[(table["edited_layer"] == at) & (table["object"] == name)].set_index("layer")
            with applied(shared, edit):
                clean = asked.outputs()
                assert rows["p_pre"].to_numpy() == pytest.approx(p_pre, rel=1e-3)
                assert rows["p_post"].to_numpy() == pytest.approx(asked.p(), rel=1e-3)
                corrupt = np.mean([asked.p(draw=draw) for draw in range(SAMPLES)])
                assert rows["p_corrupt"].to_numpy() == pytest.approx(corrupt, rel=1e-3)
                for layer in (0, 2, 5):
                    span = window_range(layer, WINDOW, 6)
                    assert (rows.loc[layer, "window_first"], rows.loc[layer, "window_last"]) == (span[0], span[-1])
                    mlps = {block: clean[block] for block in span}
                    restored = np.mean([asked.p(mlps, draw=draw) for draw in range(SAMPLES)])
                    expected = {"p_restored": float(restored)}
                    zeros = {block: torch.zeros_like(clean[block]) for block in span}
                    subject = slice(asked.first, asked.end)
                    expected |= {"p_zeroed": asked.p(zeros), "p_zeroed_subject": asked.p(zeros, subject)}
                    if edit is not None:
                        was = {block: unedited[block] for block in span}
                        expected |= {"p_unedited": asked.p(was), "p_unedited_subject": asked.p(was, subject)}
                    for column, value in expected.items():
                        assert rows.loc[layer, column] == pytest.approx(value, rel=1e-3, abs=1e-9), (name, at, column)
    moved = table[(table["object"] == "new") & (table["edited_layer"] == 0)].iloc[0]
    assert moved["p_post"] > 2 * moved["p_pre"]  # the edit did something


def test_the_old_site_is_named_under_the_traces_noise_and_measured_under_another(
    shared: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    whole = NoiseTable

    def noted(*args: Any) -> Any:
        seen.append(args[5])
        return whole(*args)

    monkeypatch.setattr(override_job, "NoiseTable", noted)
    (fact, *_) = facts()
    table = frame(job_of(settings(), folder, (fact,)))
    assert seen[0] == "trace"
    assert set(seen[1:]) == {"score"}
    prompt = fact_prompt(shared, fact)
    traced = FactTrace(shared, prompt, whole(0, fact.fact_id, SD, SAMPLES, shared.embedding_width), SAMPLES)
    effect = traced.fast("mlp", WINDOW).effect[prompt.last_subject]
    assert set(table["old_layer"]) == {int(effect.argmax())}


def test_both_paths_give_the_same(shared: LanguageModel, folder: Path) -> None:
    fast, plain = (frame(job_of(settings(path), folder, facts()[:1])) for path in ("fast", "plain"))
    names = [column for column in fast if column not in MEASURED]
    pd.testing.assert_frame_equal(fast[names], plain[names])
    assert (fast[list(MEASURED)] - plain[list(MEASURED)]).abs().max().max() < 2e-3
    assert (fast[list(MEASURED)].isna() == plain[list(MEASURED)].isna()).all(axis=None)


def test_the_same_table_however_often_interrupted_and_on_however_many_workers(folder: Path, tmp_path: Path) -> None:
    job, store = job_of(settings(), folder), Store(tmp_path / "store")
    units = job.units()
    assert [unit.label for unit in units] == [f"{fact.fact_id} rome error_injection" for fact in facts()]
    last = job.worker()(units[-1])  # without the first: nothing hangs on what came before
    store.put_table(job.step, units[-1].key, last, units[-1].label)
    kept = next(entry.mtime for entry in store.entries())
    table = engine.run(job, store, (1, 1))
    assert min(entry.mtime for entry in store.entries()) == kept
    assert table.equals(engine.run(job, Store(tmp_path / "other"), (2, 1)))
    write(table, tmp_path / "override.parquet")
    assert len(read(tmp_path / "override.parquet", OVERRIDE)) == len(table)


def test_a_unit_s_key_has_what_its_numbers_rest_on(folder: Path) -> None:
    def keys(params: Params) -> tuple[str, ...]:
        return tuple(unit.key for unit in job_of(params, folder).units())

    found = keys(settings())
    rome = settings()
    rome._sections["rome"] = {**rome.sections["rome"], "steps": 6}
    others = [
        settings(layers=(0,)), settings(window=1), settings("plain"), settings(edit={"layers": (0, 1, 3)}), rome,
        settings(problems=("tracing_reversal",)),
    ]  # fmt: skip
    assert len({found, *(keys(params) for params in others)}) == len(others) + 1
    assert keys(settings(min_change=0.5, min_effect=0.5)) == found
    assert keys(settings(edit={"text_tokens": 7, "collapse_nats": 1.0})) == found
    assert keys(settings(count=1)) == found[:1]
    assert len(keys(settings(problems=("tracing_reversal", "error_injection")))) == 4


def test_what_the_run_does_not_edit_is_refused(folder: Path) -> None:
    for params, told in (
        (settings(edit={"layers": (0, 2)}), r"override\.layers holds 3 but must be among edit\.layers, .* 0, 2"),
        (settings(methods=("memit",)), r"override\.methods holds memit but must be among edit\.methods"),
        (settings(edit={"problems": ("fact_erasure",)}), r"override\.problems holds error_injection but must"),
    ):
        with pytest.raises(UserError, match=told):
            job_of(params, folder)


def test_a_traced_block_that_the_run_does_not_edit_is_not_edited(shared: LanguageModel, folder: Path) -> None:
    table = frame(job_of(settings(edit={"layers": (0, 3)}, layers=(3,)), folder, facts()[:1]))
    old = int(table["old_layer"].iloc[0])
    assert set(table["edited_layer"]) == {-1, 3, *({0} if old == 0 else ())}


def test_a_fact_that_is_not_edited_has_rows_that_say_why(shared: LanguageModel, folder: Path) -> None:
    # Under noise as weak as this the model says the true object as ever, which leaves tracing reversal no target.
    table = frame(job_of(settings(problems=("tracing_reversal",)), folder, facts()[:1], 1e-6))
    edited = table[table["edited_layer"] >= 0]
    assert set(edited["status"]) == {"dropped: under noise the model still says target_true"}
    assert edited[list(MEASURED)].isna().all(axis=None)
    unedited = table[table["edited_layer"] < 0].groupby("object")["p_restored"].count()
    assert unedited.to_dict() == {"new": 0, "true": 6}


def test_status_lists_its_units_once_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start()
    store = Store("data/store")
    params = change(override={"count": 3})
    upstream()
    assert "override" not in pending.steps(params, store)
    (store.root / "override").mkdir()
    assert len(pending.steps(params, store)["override"]) == 3
    waits = pending.steps(change(override={"layers": [0, 5]}, edit={"layers": [0]}), store)["override"]
    assert isinstance(waits, str)
    assert "override.layers holds 5" in waits
