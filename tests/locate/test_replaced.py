"""MLP outputs replaced at the subject: what follows by construction, and the fast path against the plain one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.prompts import Prompt, tokenize
from pipeline.locate.last_subject import LastSubjectTrace
from pipeline.locate.replaced import SubjectMlps
from pipeline.locate.tracing import FactTrace
from tests.lm.families import EXPERTS, FAST, FAST_EDITED, random_model

SAMPLES, WINDOW = 3, 3
TEXT, SUBJECT = "The capital of Anna Berg is", "Anna Berg"


def prompts(lm: LanguageModel) -> list[Prompt]:
    """Two targets of different lengths."""
    return [
        tokenize(lm.tokenizer, TEXT, subject=SUBJECT, target=target, add_bos=False) for target in ("Oslo now", "Rome")
    ]


def changed(lm: LanguageModel, layer: int) -> LanguageModel:
    """The model with another down-projection in one block; random_model's are each test's own."""
    generator = torch.Generator().manual_seed(1)
    weight = lm.arch.down_projs[layer].weight
    weight.data += 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return lm


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The furthest that probabilities lie apart, as a share: those of random models are far below approx's margin."""
    return float(np.abs(found / expected - 1).max())


@pytest.mark.parametrize("whole_subject", [False, True])
@pytest.mark.parametrize("family", FAST)
def test_fast_equals_plain(family: str, whole_subject: bool) -> None:
    # transformers computes these families' softmax, or their router, in float32.
    bound = 1e-6 if family in ("gemma2", *EXPERTS) else 1e-9
    lm = random_model(family)
    slow = replace(lm, fast=False)
    other = SubjectMlps(lm, prompts(lm)), SubjectMlps(slow, prompts(lm))
    if family in FAST_EDITED:
        changed(lm, 1)
    fast, plain = SubjectMlps(lm, prompts(lm)), SubjectMlps(slow, prompts(lm))
    assert apart(fast.p, plain.p) < bound
    for sources in (other, (None, None)):
        one, two = (
            mlps.replaced(WINDOW, source, whole_subject=whole_subject)
            for mlps, source in zip((fast, plain), sources, strict=True)
        )
        assert one.shape == (2, lm.n_layers)
        assert apart(one, two) < bound
        at_once = fast.replaced(WINDOW, sources[0], whole_subject=whole_subject, rows=lambda suffix: 1)
        assert apart(at_once, two) < bound
        if family in FAST_EDITED or sources[0] is None:
            assert apart(one, fast.p[:, None]) > 1e-3  # it makes a difference


@pytest.mark.parametrize("fast", [True, False])
def test_below_a_change_its_own_outputs_are_put_back_and_at_it_they_undo_it_at_that_token(fast: bool) -> None:
    lm = replace(random_model("llama"), fast=fast)
    whole = SubjectMlps(lm, prompts(lm))
    assert apart(whole.replaced(WINDOW, whole), whole.p[:, None]) < 1e-9
    changed(lm, 2)
    edited = SubjectMlps(lm, prompts(lm))
    found = edited.replaced(1, whole)
    for layer in (0, 1):
        assert apart(found[:, layer], edited.p) < 1e-9
    assert apart(found[:, 2], edited.p) > 1e-4
    assert apart(found[:, 3], edited.p) < 1e-9  # from the last block no other token is reached
    # Where all tokens are the subject's, the old outputs of the changed block undo the change.
    at = SubjectMlps(lm, [tokenize(lm.tokenizer, SUBJECT, subject=SUBJECT, target="is", add_bos=False)])
    assert len(at.prompts[0].target_ids) == 1  # so no token of the target's own is changed
    changed(lm, 2)
    again = SubjectMlps(lm, at.prompts)
    assert apart(again.p, at.p) > 1e-4
    assert apart(again.replaced(1, at, whole_subject=True)[:, 2], at.p) < 1e-9


def test_zeros_at_a_block_whose_mlp_gives_nothing_change_nothing() -> None:
    lm = random_model("llama")
    torch.nn.init.zeros_(lm.arch.down_projs[1].weight)
    mlps = SubjectMlps(lm, prompts(lm))
    found = mlps.replaced(1, None, whole_subject=True)
    assert apart(found[:, 1], mlps.p) < 1e-9
    assert apart(found[:, 0], mlps.p) > 1e-4


def test_outputs_of_other_prompts_are_refused() -> None:
    lm = random_model("llama")
    mlps = SubjectMlps(lm, prompts(lm))
    with pytest.raises(ValueError, match="outputs of other prompts"):
        mlps.replaced(1, SubjectMlps(lm, prompts(lm)[:1]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_the_last_subject_token_s_trace_is_a_row_of_the_whole_one(family: str) -> None:
    lm = random_model(family)
    prompt = prompts(lm)[0]

    def of(kind: type[FactTrace]) -> FactTrace:
        return kind(lm, prompt, NoiseTable(0, "a", 0.5, SAMPLES, lm.embedding_width), SAMPLES)

    whole, alone = of(FactTrace).fast("mlp", WINDOW), of(LastSubjectTrace).fast("mlp", WINDOW)
    assert alone.restored.shape == (1, lm.n_layers)
    assert apart(alone.restored[0], whole.restored[prompt.last_subject]) < 1e-9
    assert (alone.p_clean, alone.p_corrupt) == (whole.p_clean, whole.p_corrupt)
    assert apart(alone.restored, np.array(alone.p_corrupt)) > 1e-4
    batched = of(LastSubjectTrace).fast("mlp", WINDOW, rows=lambda suffix: 1)
    assert apart(batched.restored, alone.restored) < 1e-9
    plain = of(LastSubjectTrace).plain("mlp", WINDOW)
    assert apart(plain.restored, alone.restored) < 1e-9
