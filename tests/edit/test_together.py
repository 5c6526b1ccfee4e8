"""Fine-tuning on many requests at once against Adam on the weights themselves, and its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from pipeline.edit.finetune import FineTune, FineTuneSettings
from pipeline.edit.protocol import EditRequest
from pipeline.edit.together import tuned_together
from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel
from pipeline.measure.edited import applied
from tests.edit.test_finetune import FAST, changes
from tests.edit.test_sequence import request_for
from tests.lm.families import random_model

SETTINGS = FineTuneSettings(steps=6, learning_rate=5e-3, max_change=None, window=1, stop_loss=None, noise_copies=2)
FACTS = (
    ("France", "The capital of {} is", "Oslo and Rome"),
    ("Anna Berg", "{} lives in the city of", "Rome"),
    ("Boris Lund", "{} was born in", "Peru"),
)
LAYER = 2


def requests_for(lm: LanguageModel) -> list[EditRequest]:
    return [request_for(lm, *fact) for fact in FACTS]


def tuned_plainly(
    lm: LanguageModel, requests: Sequence[EditRequest], settings: FineTuneSettings, batch: int, decay: float
) -> torch.Tensor:
    """The change of W (d, d_ff) by torch's own Adam on W, whole prompts one at a time; W is put back."""
    weight = lm.arch.down_projs[LAYER].weight
    before = weight.detach().clone()
    weight.requires_grad_(True)
    optimiser = torch.optim.Adam([weight], settings.learning_rate, weight_decay=decay)
    for _ in range(settings.steps):
        for low in range(0, len(requests), batch):
            optimiser.zero_grad()
            nll = []
            for request in requests[low : low + batch]:
                prompt = request.prompts[0]
                logs = lm.model(input_ids=torch.tensor([prompt.ids])).logits[0].log_softmax(-1)
                nll.append(-logs[list(prompt.reads), list(prompt.target_ids)].mean())
            torch.stack(nll).mean().backward()
            optimiser.step()
    change = (weight.detach() - before).clone()
    weight.requires_grad_(False)
    weight.grad = None
    weight.data.copy_(before)
    return lm.arch.turned(LAYER, change)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("batch", "decay"), [(3, 0.0), (2, 0.0), (2, 0.05)])
def test_it_is_adam_on_the_weights(family: str, batch: int, decay: float) -> None:
    lm = random_model(family)
    requests = requests_for(lm)
    expected = tuned_plainly(lm, requests, SETTINGS, batch, decay)
    for memory in (None, 1):  # 1: each request in a pass of its own
        edit = tuned_together(lm, requests, SETTINGS, LAYER, batch=batch, decay=decay, memory=memory)
        (change,) = changes(edit).values()
        assert (edit.layer, edit.steps, edit.status) == (LAYER, SETTINGS.steps, "ok")
        assert (change - expected).norm() <= 1e-6 * expected.norm()


def test_one_request_alone_is_the_method_of_one_request() -> None:
    lm = random_model("llama")
    settings = replace(SETTINGS, window=3, max_change=1e-2)
    for request in requests_for(lm):
        together = tuned_together(lm, [request], settings, LAYER, batch=1)
        (alone,) = FineTune(settings, FAST).edit(lm, request, [LAYER])
        assert changes(together).keys() == changes(alone).keys()
        assert together.loss == pytest.approx(alone.loss, rel=1e-6)
        for block, change in changes(together).items():
            assert (change - changes(alone)[block]).norm() <= 1e-6 * change.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_stored_weight_leaves_the_bound(dtype: torch.dtype) -> None:
    lm, bound = random_model("llama", dtype), 3e-3
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    settings = replace(SETTINGS, max_change=bound, window=3)
    edit = tuned_together(lm, requests_for(lm), settings, LAYER, batch=2, decay=0.1)
    with applied(lm, edit):
        far = {
            name: float((value.double() - before[name].double()).abs().max())
            for name, value in lm.model.state_dict().items()
        }
    assert 0.5 * bound < max(far.values()) <= bound
    assert sorted(name for name, most in far.items() if most) == sorted(
        f"model.layers.{block}.mlp.down_proj.weight" for block in (1, 2, 3)
    )
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_it_ends_once_all_is_learnt_and_a_batch_that_is_takes_no_step() -> None:
    lm = random_model("gpt2")
    requests = requests_for(lm)
    (never,) = changes(tuned_together(lm, requests, replace(SETTINGS, stop_loss=100.0), LAYER, batch=1)).values()
    assert not never.any()
    until = replace(SETTINGS, steps=60, stop_loss=1.0)
    edit = tuned_together(lm, requests[1:], until, LAYER, batch=1)
    assert 20 < edit.steps < 60
    assert edit.loss < 1.0


def test_a_model_without_the_resumed_forward_is_refused() -> None:
    lm = replace(random_model("llama"), fast=False)
    with pytest.raises(UserError, match="resumed forward only"):
        tuned_together(lm, requests_for(lm), SETTINGS, LAYER, batch=1)
