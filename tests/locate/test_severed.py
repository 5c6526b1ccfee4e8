"""The severed model: its limits, and its fast path against the plain one."""

import numpy as np
import pytest
import torch

from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.prompts import Prompt, tokenize
from pipeline.locate.severed import SeveredTrace
from pipeline.locate.tracing import FactTrace
from pipeline.settings.fields import SEVERED
from tests.lm.families import EXPERTS, FAST, random_model

SAMPLES = 3


def prompt_of(lm: LanguageModel) -> Prompt:
    return tokenize(lm.tokenizer, "The capital of Anna Berg is", subject="Anna Berg", target="Oslo now", add_bos=False)


def noise_of(lm: LanguageModel, sd: float = 0.5) -> NoiseTable:
    return NoiseTable(0, "a", sd, SAMPLES, lm.embedding_width)


def severed_trace(lm: LanguageModel, severed: str, sd: float = 0.5) -> SeveredTrace:
    return SeveredTrace(lm, prompt_of(lm), noise_of(lm, sd), SAMPLES, severed)


def whole_trace(lm: LanguageModel) -> FactTrace:
    return FactTrace(lm, prompt_of(lm), noise_of(lm), SAMPLES)


@pytest.mark.parametrize("severed", SEVERED)
@pytest.mark.parametrize("family", FAST)
def test_fast_equals_plain(family: str, severed: str) -> None:
    # transformers computes these families' softmax, or their router, in float32.
    bound = 1e-6 if family in ("gemma2", *EXPERTS) else 1e-9
    lm = random_model(family)
    traced = severed_trace(lm, severed)
    fast, plain = traced.fast("hidden", 1), traced.plain("hidden", 1)
    assert np.abs(fast.restored - plain.restored).max() < bound * plain.restored.max()
    # Severing must make a difference at all for this to mean anything.
    whole = whole_trace(lm).fast("hidden", 1)
    assert np.abs(fast.restored - whole.restored).max() > 1e-3 * plain.p_clean
    assert (fast.p_clean, fast.p_corrupt) == (whole.p_clean, whole.p_corrupt)


def test_rows_at_once_do_not_matter() -> None:
    traced = severed_trace(random_model("llama"), "mlp")
    whole = traced.fast("hidden", 1).restored
    assert np.abs(traced.fast("hidden", 1, rows=lambda suffix: 1).restored - whole).max() < 1e-9 * whole.max()


@pytest.mark.parametrize("severed", SEVERED)
def test_above_the_last_block_there_is_nothing_to_sever(severed: str) -> None:
    lm = random_model("llama")
    held, whole = severed_trace(lm, severed).fast("hidden", 1), whole_trace(lm).fast("hidden", 1)
    assert held.restored[:, -1] == pytest.approx(whole.restored[:, -1], rel=1e-9)
    assert np.abs(held.restored[:, 0] - whole.restored[:, 0]).max() > 1e-3 * whole.p_clean


@pytest.mark.parametrize("severed", SEVERED)
def test_modules_that_give_nothing_are_severed_without_effect(severed: str) -> None:
    lm = random_model("llama")
    for block in lm.arch.blocks:
        last = {"mlp": block.mlp.down_proj, "attn": block.self_attn.o_proj}[severed]
        torch.nn.init.zeros_(last.weight)
    held, whole = severed_trace(lm, severed).fast("hidden", 1), whole_trace(lm).fast("hidden", 1)
    if severed == "mlp":
        assert np.ptp(whole.restored) > 1e-3 * whole.p_clean
    assert held.restored == pytest.approx(whole.restored, rel=1e-9)


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_without_noise_held_outputs_are_the_clean_ones(path: str) -> None:
    traced = severed_trace(random_model("gpt2"), "attn", sd=1e-12)
    restored = getattr(traced, path)("hidden", 1).restored
    assert restored == pytest.approx(np.full_like(restored, traced.p_clean), rel=1e-9)


def test_what_it_cannot_do_is_said() -> None:
    lm = random_model("gpt2")
    with pytest.raises(ValueError, match="severed is 'hidden' but must be one of mlp, attn"):
        severed_trace(lm, "hidden")
    traced = severed_trace(lm, "mlp")
    for compute in (traced.fast, traced.plain):
        with pytest.raises(ValueError, match="one hidden state, not mlp over 5 blocks"):
            compute("mlp", 5)
    with pytest.raises(ValueError, match="not hidden over 2 blocks"):
        traced.fast("hidden", 2)
