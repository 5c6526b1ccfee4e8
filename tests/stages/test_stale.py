"""Nothing stale is used: what a result depends on is found, so that a change of any of it makes the result anew."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.compute import inputs, keys, statistics
from pipeline.compute.edit_job import EditJob
from pipeline.compute.known_job import KnownJob
from pipeline.compute.trace_job import TraceJob
from pipeline.edit.methods import METHODS, load
from pipeline.lm.folders import fingerprint
from pipeline.settings.params import Params
from tests.conftest import TINY_FACTS
from tests.lm.families import random_model
from tests.stages.clones import Clone, ran, to_do

NAMES = {
    "blocks": "transformer.h", "attn": "attn", "mlp": "mlp", "down_proj": "mlp.c_proj",
    "final_norm": "transformer.ln_f", "head": "lm_head", "mlp_norm": None,
}  # fmt: skip


@pytest.mark.slow
def test_a_corrected_module_name_makes_the_trace_anew(clone: Clone) -> None:
    """`attn: ln_1` traces the norm before the attention; corrected, the attention."""
    clone.change("trace", modules=["attn"])
    clone.change("model", names=NAMES | {"attn": "ln_1"})
    clone.repro("trace")
    wrong = clone.read("trace")
    clone.change("model", names=NAMES)
    again = clone.repro("trace")
    assert {"model", "facts", "trace"} <= ran(again)
    assert "trace" in to_do(again)
    right = clone.read("trace")
    assert right["p_corrupt"].equals(wrong["p_corrupt"])
    assert not right["p_restored"].equals(wrong["p_restored"])


@pytest.mark.slow
def test_another_content_of_the_text_file_makes_the_second_moments_anew(clone: Clone) -> None:
    text = clone.root / "text.txt"
    prompts = [line.split("\t") for line in (TINY_FACTS / "facts.tsv").read_text().splitlines()[1:]]
    sentences = [f"{subject} likes {target}." for _, subject, target in prompts]
    text.write_text(" ".join(sentences * 20))
    clone.change("statistics", text="text.txt", ridge=1e-3)
    assert "statistics" in ran(clone.repro("statistics"))
    moments = clone.root / "data" / "statistics" / "moments.safetensors"
    before = moments.read_bytes()
    assert "statistics" not in ran(clone.repro("statistics"))
    text.write_text(" ".join(sentences[::-1] * 20 + ["The end."]))
    again = clone.repro()
    assert {"statistics", "edit@rome-fact_erasure"} <= ran(again)
    assert "edit-rome-fact_erasure" in to_do(again)
    assert moments.read_bytes() != before


@pytest.mark.slow
def test_another_content_of_the_facts_folder_makes_the_facts_anew(clone: Clone) -> None:
    table = Path(shutil.copytree(TINY_FACTS, clone.root / "mine")) / "facts.tsv"
    clone.change("facts", path="mine")
    assert {"facts"} <= ran(clone.repro("facts"))
    before = clone.read("facts")
    assert not {"model", "facts"} & ran(clone.repro("facts"))
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    assert ran(clone.repro("facts")) == {"params", "facts"}
    assert len(clone.read("facts")) < len(before)


@pytest.mark.slow
def test_another_content_of_a_model_s_folder_makes_all_anew(clone: Clone, tiny_folder: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, clone.root / "mine"))
    clone.change("model", name="mine")
    clone.change("edit", problems=["fact_erasure"])
    clone.repro("trace")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "a"}))
    again = clone.repro("trace")
    assert {"model", "trace"} <= ran(again)
    assert "trace" in to_do(again)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", '{"bos_token": "a"}'),
        ("special_tokens_map.json", '{"bos_token": "a"}'),
        ("generation_config.json", '{"repetition_penalty": 2.0}'),
        ("modeling_own.py", "x = 1"),
    ],
)
def test_every_file_that_decides_a_number_is_in_the_fingerprint(name: str, content: str, tmp_path: Path) -> None:
    lm = random_model("gpt2", torch.float32)
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    before = fingerprint(tmp_path)
    (tmp_path / name).write_text(content)
    assert fingerprint(tmp_path) != before


MODEL = {"fingerprint": "f" * 32, "source": "x", "layers": 6, "key_size": 4, "fast_path": True}


def all_keys(params: Params) -> list[str]:
    """A key of each kind of unit."""
    (fact, *_), manifest = inputs.candidates(params).facts, {"source_key": "k"}
    edit = EditJob(params, MODEL, (fact,), 0.1, METHODS["rome"], "error_injection", manifest, ("",), Path())
    jobs = (KnownJob(params, MODEL, (fact,)), TraceJob(params, MODEL, (fact,), 0.1), edit)
    return [*(job.units()[0].key for job in jobs), statistics.key_of(params, MODEL, 1)]


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(TINY_FACTS.parents[2])
    return load("presets/smoke.yaml")


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("model", {"names": "given"}), ("model", {"dtype": "float64"}), ("model", {"add_bos": True}),
        ("compute", {"tf32": True}), ("compute", {"compile": True}), ("compute", {"path": "plain"}),
    ],
)  # fmt: skip
def test_every_setting_that_can_change_a_number_is_in_every_key(
    params: Params, section: str, change: dict[str, Any]
) -> None:
    if change == {"names": "given"}:
        named = type(params.model).model_validate(params.model.model_dump() | {"names": NAMES})
        change = {"names": named.names}
    other = getattr(params, section).model_copy(update=change)
    changed = all_keys(params.model_copy(update={section: other}))
    assert [a == b for a, b in zip(all_keys(params), changed, strict=True)] == [False] * 4


def test_versions_and_code_are_in_every_key(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    before = all_keys(params)
    with monkeypatch.context() as patch:
        patch.setattr(keys, "version", lambda library: "9.9")
        assert not set(before) & set(all_keys(params))
    monkeypatch.setattr(keys, "code_version", lambda *modules: "other")
    assert not set(before) & set(all_keys(params))
