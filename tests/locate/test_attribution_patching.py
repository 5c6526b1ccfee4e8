"""Attribution patching: the slope of restoring, cell by cell, and how it stands to exact tracing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.lm.forward import first
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.noise import NoiseTable
from pipeline.lm.plain import Batch, full_logits, outputs
from pipeline.locate.attribution_patching import effects, locate, windowed
from pipeline.locate.gradients import copies_within
from pipeline.locate.protocol import Case
from pipeline.locate.tracing import FactTrace
from tests.lm.families import CONFIGS, EXPERTS, random_model
from tests.locate.cases import SAMPLES, case_of


def mean_p(lm: LanguageModel, case: Case, token: int, layer: int, share: torch.Tensor) -> torch.Tensor:
    """Mean p(target) of the noised prompts, one MLP output moved by `share` of the way to its clean value."""
    prompt = case.true
    clean = outputs(lm, prompt, lm.arch.mlp_ends)[layer][token]

    def move(_module: Any, _args: Any, output: Any) -> Any:
        shaped = first(output).reshape(SAMPLES, len(prompt.ids), -1)
        at = torch.zeros(len(prompt.ids), 1, dtype=shaped.dtype)
        at[token] = 1
        shaped = (shaped + share * at * (clean - shaped).detach()).reshape(first(output).shape)
        return (shaped, *output[1:]) if isinstance(output, tuple) else shaped

    batch = Batch.of([prompt] * SAMPLES, lm.device)
    rows = [case.noise.rows(prompt, draw) for draw in range(SAMPLES)]
    handle = lm.arch.mlp_ends[layer].register_forward_hook(move)
    try:
        logs = full_logits(lm, batch, batch.noise(case.noise.table, rows)).log_softmax(-1)
    finally:
        handle.remove()
    return logs[:, list(prompt.reads), list(prompt.target_ids)].sum(-1).exp().mean()


@pytest.mark.parametrize("family", CONFIGS)
def test_each_cell_is_the_slope_of_restoring_it(family: str) -> None:
    lm = random_model(family)
    case = case_of(lm)
    found = effects(lm, case)
    assert case.true.subject is not None
    start, end = case.true.subject
    assert found.shape == (case.true.target_start, lm.n_layers)
    assert (found[:start] == 0).all()
    bound = 1e-5 if lm.arch.config.model_type in ("gemma2", *EXPERTS) else 1e-6  # of what they compute in float32
    for token, layer in ((start, 0), (end - 1, 1), (end, lm.n_layers - 1), (len(found) - 1, 2)):
        share = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(mean_p(lm, case, token, layer, share), share)
        assert abs(found[token, layer] - float(slope)) <= bound * np.abs(found).max()
    assert np.abs(found).max() > 0


def test_no_gradient_is_needed_to_see_it() -> None:
    """The slope by differences, without autograd."""
    lm = random_model("gpt2")
    case = case_of(lm)
    found, step = effects(lm, case), 1e-4
    for token, layer in ((case.true.last_subject, 0), (case.true.last_subject, 2), (len(found) - 1, 3)):
        with torch.no_grad():
            ends = [float(mean_p(lm, case, token, layer, torch.tensor(share))) for share in (-step, step)]
        assert (ends[1] - ends[0]) / (2 * step) == pytest.approx(found[token, layer], rel=1e-4)


def test_it_nears_exact_tracing_as_the_noise_gets_small() -> None:
    lm = random_model("llama")
    errors = []
    for sd in (2e-3, 2e-4):
        case = case_of(lm)
        noise = NoiseTable(0, "a", sd, SAMPLES, lm.embedding_width)
        small = replace(case, noise=noise)
        exact = FactTrace(lm, small.true, noise, SAMPLES).fast("mlp", 1).effect
        errors.append(np.abs(effects(lm, small) - exact).max() / np.abs(exact).max())
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.05


def test_a_window_has_the_sum_of_its_layers() -> None:
    effect = np.array([[1.0, 2.0, 4.0, 8.0], [0.0, -1.0, 5.0, 0.0]])
    assert (windowed(effect, 1) == effect).all()
    assert (windowed(effect, 3) == [[3, 7, 14, 12], [-1, 4, 4, 5]]).all()
    assert (windowed(effect, 99) == effect.sum(1, keepdims=True)).all()
    for layer in range(4):
        span = window_range(layer, 2, 4)
        assert (windowed(effect, 2)[:, layer] == effect[:, list(span)].sum(1)).all()


def test_a_layer_has_its_largest_effect_from_the_subject_on() -> None:
    lm = random_model("gpt2")
    case = case_of(lm)
    found = locate(lm, case)
    assert list(found) == ["attribution_patching_w1", "attribution_patching_w3"]
    assert case.true.subject is not None
    seen = effects(lm, case)[case.true.subject[0] :]
    assert (found["attribution_patching_w1"] == seen.max(0)).all()
    assert (found["attribution_patching_w3"] == windowed(seen, 3).max(0)).all()


def test_batches_within_a_memory_give_the_same_and_leave_the_model_as_it_was() -> None:
    lm = random_model("qwen2")
    whole = effects(lm, case_of(lm))
    assert copies_within(lm, 10, 1) == 1
    parts = effects(lm, case_of(lm, memory=1))
    assert np.abs(parts - whole).max() <= 1e-12 * np.abs(whole).max()
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not any(module._forward_hooks for module in lm.model.modules())
