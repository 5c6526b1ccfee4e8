"""Edits in sequence against ROME written out once more: whole prompts, weights changed for good, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.edit.protocol import EditRequest, LowRank
from pipeline.edit.rome import Rome
from pipeline.edit.sequence import in_sequence
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import tokenize
from tests.edit.test_rome import PREFIXES, SETTINGS, resources_for, ridge_of
from tests.lm.families import random_model

MEMORY = 2**30
FACTS = (("France", "The capital of {} is", "Oslo"), ("Anna Berg", "{} lives in the city of", "Rome"))
LAYER = 1


def request_for(lm: LanguageModel, subject: str, text: str, target: str) -> EditRequest:
    prompts = tuple(
        tokenize(lm.tokenizer, prefix + text.format(subject), subject=subject, target=target, add_bos=lm.add_bos)
        for prefix in PREFIXES
    )
    essence = tokenize(lm.tokenizer, f"{subject} is a", subject=subject, add_bos=lm.add_bos)
    return EditRequest(subject, prompts, essence, None, False, "error_injection")


@pytest.fixture
def lm() -> LanguageModel:
    return random_model("gpt2")  # in float64 throughout


@pytest.fixture
def requests(lm: LanguageModel) -> list[EditRequest]:
    return [request_for(lm, *fact) for fact in FACTS]


def plain_rome(lm: LanguageModel, request: EditRequest, c: Tensor) -> Tensor:
    """The change of W, (d, d_ff), by Meng et al. 2022's equations 2 and 4, one prompt at a time, of the model as it is.

    c: the second moment.
    """
    module = lm.arch.down_projs[LAYER]
    delta = torch.zeros(lm.arch.width, dtype=torch.float64, requires_grad=True)
    seen: dict[str, Tensor] = {}

    def logs(ids: tuple[int, ...], site: int) -> Tensor:
        def hook(_module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            seen["key"], seen["value"] = args[0][0, site].detach(), output[0, site].detach()
            add = torch.zeros_like(output)
            add[0, site] = delta
            return output + add

        handle = module.register_forward_hook(hook)
        out = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        handle.remove()
        return torch.as_tensor(out)

    keys = []
    for prompt in request.prompts:
        logs(prompt.ids, prompt.last_subject)
        keys.append(seen["key"])
        if len(keys) == 1:
            v0 = seen["value"]
    site = request.essence.last_subject
    base = logs(request.essence.ids, site)[site].detach()
    optimiser = torch.optim.Adam([delta], lr=SETTINGS.learning_rate)
    for _ in range(SETTINGS.steps):
        optimiser.zero_grad()
        nll = torch.stack([
            -torch.stack([logs(p.ids, p.last_subject)[at, token]
                          for at, token in zip(p.reads, p.target_ids, strict=True)]).mean()
            for p in request.prompts
        ]).mean()  # fmt: skip
        now = logs(request.essence.ids, site)[site]
        kl = (now.exp() * (now - base)).sum()
        loss = nll + SETTINGS.kl_factor * kl + SETTINGS.weight_decay * delta.norm() / v0.norm() ** 2
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            most = SETTINGS.clamp_norm_factor * v0.norm()
            if delta.norm() > most:
                delta *= most / delta.norm()
    u = torch.linalg.solve(c, torch.stack(keys).mean(0))
    return torch.outer(delta.detach(), u) / (u @ keys[0])


def test_two_edits_are_those_of_a_model_that_keeps_the_first(lm: LanguageModel, requests: list[EditRequest]) -> None:
    resources = resources_for(lm)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    edits = in_sequence(lm, Rome(SETTINGS, resources), requests, LAYER, MEMORY)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    c = resources.moment(LAYER) + ridge_of(resources, LAYER)  # of the unedited model, for both
    weight = lm.arch.down_projs[LAYER].weight
    try:
        for request, edit in zip(requests, edits, strict=True):
            change = plain_rome(lm, request, c)
            (update,) = edit.updates
            assert (update.matrix() - change).norm() <= 1e-9 * change.norm()
            with torch.no_grad():
                weight += lm.arch.turned(LAYER, change)
    finally:
        weight.data.copy_(before[f"transformer.h.{LAYER}.mlp.c_proj.weight"])
    alone = Rome(SETTINGS, resources).edit(lm, requests[1], [LAYER])[0].updates[0]
    assert (alone.matrix() - edits[1].updates[0].matrix()).norm() > 1e-3 * alone.matrix().norm()


def test_a_sequence_that_goes_on_from_its_first_part_has_the_same_bits(requests: list[EditRequest]) -> None:
    lm = random_model("gpt2", torch.float32)
    requests = [request_for(lm, *fact) for fact in FACTS]
    editor = Rome(SETTINGS, resources_for(lm))
    whole = in_sequence(lm, editor, requests, LAYER, MEMORY)
    first = in_sequence(lm, editor, requests[:1], LAYER, MEMORY)
    second = in_sequence(lm, editor, requests[1:], LAYER, MEMORY, [u for edit in first for u in edit.updates])
    for one, other in zip(whole, [*first, *second], strict=True):
        (a,), (b,) = one.updates, other.updates
        assert isinstance(a, LowRank)
        assert isinstance(b, LowRank)
        assert a.left.dtype == torch.float64
        assert torch.equal(a.left, b.left)
        assert torch.equal(a.right, b.right)


def test_an_edit_that_fails_leaves_the_next_as_it_would_be_without_it(
    lm: LanguageModel, requests: list[EditRequest]
) -> None:
    class Failing(Rome):
        def edit(self, lm: LanguageModel, request: EditRequest, *rest: object, **more: object) -> list:
            edits = super().edit(lm, request, *rest, **more)  # type: ignore[arg-type]
            bad = request.fact_id == FACTS[0][0]
            return [replace(edit, updates=(), status="failed: for the test") if bad else edit for edit in edits]

    resources = resources_for(lm)
    edits = in_sequence(lm, Failing(SETTINGS, resources), requests, LAYER, MEMORY)
    (alone,) = in_sequence(lm, Rome(SETTINGS, resources), requests[1:], LAYER, MEMORY)
    assert [edit.status for edit in edits] == ["failed: for the test", "ok"]
    assert torch.equal(edits[1].updates[0].matrix(), alone.updates[0].matrix())
