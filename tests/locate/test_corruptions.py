"""Tracing under other corruptions and metrics: the fast path against the plain one, and what each of them is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.facts.partners import fits
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.plain import Batch, full_logits, target_probabilities
from pipeline.lm.prompts import Prompt, tokenize
from pipeline.locate.corruptions import CorruptedTrace, Untouched, Zeroing
from pipeline.locate.tracing import FactTrace
from pipeline.settings.fields import CORRUPTIONS, METRICS
from tests.lm.families import EXPERTS, FAST, random_model

SAMPLES = 2
TEXT, SUBJECT, OTHER = "The capital of Anna Berg is", "Anna Berg", "Oslo Lund"


def prompt_of(lm: LanguageModel, target: str, subject: str = SUBJECT) -> Prompt:
    text = TEXT.replace(SUBJECT, subject)
    return tokenize(lm.tokenizer, text, subject=subject, target=target, add_bos=False)


def stand_in(true: Prompt) -> Prompt:
    """The prompt with other tokens in the subject's place."""
    assert true.subject is not None
    start, end = true.subject
    return replace(true, ids=tuple(i + 7 if start <= j < end else i for j, i in enumerate(true.ids)))


def traced(lm: LanguageModel, corruption: str, true: str = "Oslo now", false: str = "Rome") -> CorruptedTrace:
    prompts = prompt_of(lm, true), prompt_of(lm, false)
    if corruption == "gaussian":
        return CorruptedTrace(lm, *prompts, NoiseTable(0, "a", 0.5, SAMPLES, lm.embedding_width), SAMPLES)
    if corruption == "zero":
        return CorruptedTrace(lm, *prompts, Zeroing(lm), 1)
    return CorruptedTrace(lm, *prompts, Untouched(lm), 1, stand_in(prompts[0]))


@pytest.mark.parametrize("family", FAST)
def test_fast_equals_plain(family: str) -> None:
    lm = random_model(family)
    # transformers computes these families' softmax, or their router, in float32.
    bound = 1e-6 if lm.arch.config.model_type in ("gemma2", *EXPERTS) else 1e-9
    for corruption, module, window in zip(CORRUPTIONS, ("attn", "mlp", "hidden"), (1, 3, 2), strict=True):
        fact = traced(lm, corruption)
        fast, plain = fact.all_fast(module, window), fact.all_plain(module, window)
        assert list(fast) == list(plain) == list(METRICS)
        for metric in METRICS:
            one, other = fast[metric], plain[metric]
            size = np.abs(other.restored).max()
            assert np.abs(one.restored - other.restored).max() < bound * size
            assert abs(one.p_clean - other.p_clean) < bound * max(size, abs(other.p_clean))
            # It must move at all for this to mean anything.
            assert np.ptp(other.restored) > 1e-3 * abs(other.p_clean)


@pytest.mark.parametrize("module", ["mlp", "attn", "hidden"])
def test_noise_and_probability_are_tracing_itself(module: str) -> None:
    lm = random_model("llama")
    noise = NoiseTable(0, "a", 0.5, SAMPLES, lm.embedding_width)
    own = FactTrace(lm, prompt_of(lm, "Oslo now"), noise, SAMPLES).fast(module, 3)
    for found in (traced(lm, "gaussian").fast(module, 3), traced(lm, "gaussian").plain(module, 3)):
        assert np.abs(found.restored - own.restored).max() < 1e-9 * own.restored.max()
        assert found.fraction == pytest.approx(own.fraction, abs=1e-6)


def test_rows_at_once_do_not_matter() -> None:
    fact = traced(random_model("llama"), "gaussian")
    whole, split = fact.all_fast("mlp", 3), fact.all_fast("mlp", 3, rows=lambda suffix: 1)
    for metric in METRICS:
        assert np.abs(split[metric].restored - whole[metric].restored).max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_zeroed_embeddings_are_exactly_zero(dtype: torch.dtype) -> None:
    lm = random_model("llama", dtype=dtype)
    fact = traced(lm, "zero")
    start, end = fact.prompt.subject or (0, 0)
    embedded = fact.corrupt.h[0][0]
    assert (embedded[start:end] == 0).all()
    assert torch.equal(embedded[end:], fact.clean.h[0][0][end:])
    assert (fact.clean.h[0][0][start:end] != 0).any()


def test_the_replaced_run_is_the_other_prompt_s() -> None:
    lm = random_model("gpt2")
    fact = traced(lm, "replace")
    other = stand_in(fact.prompt)
    p = float(target_probabilities(lm, Batch.of([other], lm.device)))
    assert fact.fast("mlp", 1).p_corrupt == pytest.approx(p, rel=1e-9, abs=0)
    assert fact.p_corrupt == pytest.approx(p, rel=1e-9, abs=0)
    assert abs(p - fact.p_clean) > 1e-3 * fact.p_clean


def test_the_logit_difference_of_single_tokens_is_that_of_their_logits() -> None:
    lm = random_model("gpt2")
    prompts = [prompt_of(lm, "Oslo"), prompt_of(lm, "Rome")]
    one, other = (replace(p, ids=p.ids[: p.target_start + 1]) for p in prompts)  # their first tokens alone
    fact = CorruptedTrace(lm, one, other, Zeroing(lm), 1)
    found = fact.all_fast("mlp", 1)
    logits = full_logits(lm, Batch.of([one], lm.device))[0, one.target_start - 1]
    expected = float(logits[one.target_ids[0]] - logits[other.target_ids[0]])
    assert found["logit_difference"].p_clean == pytest.approx(expected, rel=1e-9)
    logs, probability = found["log_probability"], found["probability"]
    assert np.exp(logs.restored) == pytest.approx(
        probability.restored, rel=1e-9, abs=0
    )  # one draw: no mean is in between
    assert len(fact.packed) == one.target_start  # nothing of the objects is run


def test_restoring_every_layer_at_the_last_token_gives_the_clean_metrics() -> None:
    lm = random_model("llama")
    prompts = [prompt_of(lm, "Oslo"), prompt_of(lm, "Rome")]
    one, other = (replace(p, ids=p.ids[: p.target_start + 1]) for p in prompts)
    for fact in (CorruptedTrace(lm, one, other, Zeroing(lm), 1), CorruptedTrace(lm, one, other, Untouched(lm), 1,
                                                                              stand_in(one))):  # fmt: skip
        for trace in fact.all_fast("hidden", 2 * lm.n_layers).values():
            assert trace.restored[-1] == pytest.approx(np.full(lm.n_layers, trace.p_clean), rel=1e-9)
            assert abs(trace.p_clean - trace.p_corrupt) > 1e-3 * abs(trace.p_clean)


def test_objects_that_begin_alike_share_their_beginning() -> None:
    lm = random_model("llama")
    fact = traced(lm, "zero", "Oslo now", "Oslo one")
    fast, plain = fact.all_fast("mlp", 1), fact.all_plain("mlp", 1)
    assert len(fact.packed) < len(fact.prompt.ids) + len(fact.false.target_ids) - 2
    for metric in METRICS:
        assert np.abs(fast[metric].restored - plain[metric].restored).max() < 1e-9


def test_who_stands_in_has_as_many_tokens_and_nothing_else_changed() -> None:
    lm = random_model("gpt2")
    true = prompt_of(lm, "Oslo")
    start, end = true.subject or (0, 0)
    assert fits(true, stand_in(true))
    assert not fits(true, true)
    assert not fits(true, prompt_of(lm, "Rome"))
    assert not fits(true, replace(true, subject=(start, end - 1)))
    longer = prompt_of(lm, "Oslo", subject="Anna Berg Oslo")
    assert not fits(true, longer)
    with pytest.raises(ValueError, match="does not stand in"):
        CorruptedTrace(lm, true, prompt_of(lm, "Rome"), Untouched(lm), 1, longer)
