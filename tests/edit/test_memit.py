"""MEMIT: its algebra, its fast path against the plain one on every family, many edits at once, and a whole-model
implementation of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.edit import spread
from pipeline.edit.many import new_values, packs
from pipeline.edit.memit import Memit, MemitSettings
from pipeline.edit.moments import Whitener
from pipeline.edit.protocol import Edit, EditRequest, LowRank
from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import FreshNoise
from pipeline.lm.prompts import tokenize
from pipeline.measure.edited import applied
from tests.edit.test_rome import PREFIXES, request_for, resources_for
from tests.lm.families import FAST_EDITED, random_model

SETTINGS = MemitSettings(
    window=3,
    steps=8,
    learning_rate=0.5,
    kl_factor=0.0625,
    weight_decay=0.5,
    clamp_norm_factor=0.75,
    covariance_weight=2.0,
    leave_when=None,
    stop_loss=None,
    erasure_loss="mean_of_exp",
)


def several(lm: LanguageModel, *, noised: bool = False) -> list[EditRequest]:
    """Three requests, two of them of one subject."""
    asked = [
        ("a", "France", "The capital of France is", "Oslo"),
        ("b", "Peru", "the official language of Peru is", "Rome"),
        ("c", "France", "The capital city of France is", "Spanish"),
    ]
    requests = []
    for fact_id, subject, text, target in asked:
        prompts = tuple(
            tokenize(lm.tokenizer, prefix + text, subject=subject, target=target, add_bos=lm.add_bos)
            for prefix in PREFIXES[: 3 if fact_id == "a" else 2]
        )
        essence = tokenize(lm.tokenizer, f"{subject} is a", subject=subject, add_bos=lm.add_bos)
        noise = FreshNoise(0, fact_id, 0.1, lm.arch.embedding.weight.shape[1]) if noised else None
        requests.append(EditRequest(fact_id, prompts, essence, noise, False))
    return requests


def matrices(edit: Edit) -> dict[int, torch.Tensor]:
    return {update.layer: update.matrix() for update in edit.updates}


def distance(one: Edit, other: Edit) -> float:
    ours, theirs = matrices(one), matrices(other)
    assert list(ours) == list(theirs)
    return max(float((ours[block] - theirs[block]).norm() / theirs[block].norm()) for block in ours)


@pytest.mark.parametrize("noised", [False, True])
@pytest.mark.parametrize("family", FAST_EDITED)
def test_fast_equals_plain_in_float64(family: str, noised: bool) -> None:
    lm = random_model(family)
    request, layers = request_for(lm, noised=noised), [0, 1, 2, 3]
    settings = replace(SETTINGS, steps=4 if noised else 8)
    fast = Memit(settings, resources_for(lm)).edit(lm, request, layers)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    plain = Memit(settings, resources_for(lm, "plain")).edit(lm, request, layers)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    # transformers computes Gemma 2's softmax, and some norms, in float32; Adam amplifies that.
    bound = 2e-3 if family in ("gemma2", "gptj") else 1e-6
    for one, other in zip(fast, plain, strict=True):
        assert [update.layer for update in one.updates] == [u.layer for u in other.updates]
        assert (one.steps, one.acts) == (other.steps, other.acts)
        if one.acts:
            assert one.loss == pytest.approx(other.loss, rel=max(bound, 1e-6))
            assert distance(one, other) <= bound
        else:
            assert all(not update.matrix().any() for update in (*one.updates, *other.updates))


def test_windows_are_cut_at_the_ends_and_reaching_the_last_block_is_marked() -> None:
    lm = random_model("llama")
    edits = Memit(SETTINGS, resources_for(lm)).edit(lm, request_for(lm), [0, 1, 2, 3])
    assert [[update.layer for update in edit.updates] for edit in edits] == [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
    assert [edit.acts for edit in edits] == [True, True, False, False]


@pytest.fixture
def one_layer() -> tuple[LanguageModel, EditRequest, Any]:
    lm = random_model("llama")
    return lm, request_for(lm), resources_for(lm)


def test_one_fact_one_layer_and_no_weight_on_the_moment_is_the_least_change_that_maps_k_to_z(one_layer: Any) -> None:
    """Least in the norm that C gives, tr(D C DT): D = r kT C^-1 / (kT C^-1 k), r what the hidden state lacks."""
    lm, request, resources = one_layer
    carried = spread.carried_of(lm, request, 1)[0]
    keys, _ = carried.seen(carried.recording.h[1], 1, 1)
    for weight in (0.0, 1e-12):
        (edit,) = Memit(replace(SETTINGS, window=1, covariance_weight=weight), resources).edit(lm, request, [1])
        (change,) = matrices(edit).values()
        r = new_values(lm, [request], SETTINGS, 1)[1][0].double()
        inverse = torch.linalg.inv(
            resources.moment(1) + 1e-4 * resources.moment(1).diagonal().mean() * torch.eye(len(resources.moment(1)))
        )
        expected = torch.outer(r, inverse @ keys[0]) / (keys[0] @ inverse @ keys[0])
        assert (change - expected).norm() <= 1e-6 * expected.norm()
        assert (change @ keys[0] - r).norm() <= 1e-6 * r.norm()
    # Any other change with that effect is larger.
    other = torch.outer(r, keys[0]) / (keys[0] @ keys[0])
    moment = torch.linalg.inv(inverse)
    assert torch.trace(other @ moment @ other.T) > torch.trace(expected @ moment @ expected.T)


@pytest.mark.parametrize("n", [1, 5, 60])
def test_shares_solve_the_normal_equations_and_unrelated_keys_stay(n: int) -> None:
    """For more requests than the key has entries too; an unrelated key moves by R A k, and not at all where C^-1 keeps
    it apart from every request's.
    """
    generator = torch.Generator().manual_seed(n)
    text = torch.randn(500, 24, dtype=torch.float64, generator=generator)
    moment, weight = text.T @ text / 500, 3.0
    keys = torch.randn(n, 24, dtype=torch.float64, generator=generator)
    residual = torch.randn(n, 7, dtype=torch.float64, generator=generator)
    share = spread.shares(Whitener(moment), weight, keys)
    delta = residual.T @ share
    torch.testing.assert_close(delta @ (weight * moment + keys.T @ keys), residual.T @ keys)

    # It is the minimum of |D KT - RT|^2 + lambda tr(D C DT): any step away from it costs more.
    def cost(change: torch.Tensor) -> float:
        return float((change @ keys.T - residual.T).square().sum() + weight * torch.trace(change @ moment @ change.T))

    for _ in range(5):
        step = 0.01 * torch.randn(7, 24, dtype=torch.float64, generator=generator)
        assert cost(delta + step) > cost(delta)
    if n < 24:
        other = torch.randn(24, dtype=torch.float64, generator=generator)
        whitened = torch.linalg.solve(moment, keys.T)  # (24, n)
        apart = other - keys.T @ torch.linalg.solve(whitened.T @ keys.T, whitened.T @ other)
        assert (delta @ apart).norm() <= 1e-10 * (delta @ other).norm()


@pytest.mark.parametrize("noised", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_values_of_many_are_those_of_each_alone(family: str, noised: bool) -> None:
    lm = random_model(family)
    requests = several(lm, noised=noised)
    settings = replace(SETTINGS, steps=4)
    h, delta = new_values(lm, requests, settings, 2)
    bound = 2e-3 if family == "gptj" else 1e-6
    for r, request in enumerate(requests):
        h_alone, alone = new_values(lm, [request], settings, 2)
        torch.testing.assert_close(h[r], h_alone[0])
        assert (delta[r] - alone[0]).norm() <= bound * alone[0].norm()
        (edit,) = Memit(replace(settings, window=1), resources_for(lm)).edit(lm, request, [2])
        assert edit.delta_norm == pytest.approx(float(alone[0].norm()), rel=1e-3 if family == "gptj" else 1e-6)


def test_some_stop_early_and_the_others_go_on() -> None:
    lm = random_model("llama")
    requests = several(lm)
    loose = replace(SETTINGS, weight_decay=0.0, kl_factor=0.0, clamp_norm_factor=100.0, steps=20, window=1)
    losses = [Memit(loose, resources_for(lm)).edit(lm, request, [1])[0].loss for request in requests]
    settings = replace(loose, stop_loss=sorted(losses)[1])
    _, delta = new_values(lm, requests, settings, 1)
    steps = []
    for r, request in enumerate(requests):
        (edit,) = Memit(settings, resources_for(lm)).edit(lm, request, [1])
        steps.append(edit.steps)
        assert edit.delta_norm == pytest.approx(float(delta[r].norm()), rel=1e-6)
    assert min(steps) < 20


@pytest.mark.parametrize("noised", [False, True])
def test_one_of_many_is_the_edit_itself(noised: bool) -> None:
    lm = random_model("llama")
    request, resources = request_for(lm, noised=noised), resources_for(lm)
    settings = replace(SETTINGS, steps=4)
    (edit,) = Memit(settings, resources).edit(lm, request, [1])
    updates = Memit(settings, resources).edit_many(lm, [request], [0, 1, 2])
    assert distance(Edit(1, updates, 0.0, 0.0, 0), edit) <= 1e-6


def test_many_at_once_solve_one_system_a_block_wherever_the_blocks_are() -> None:
    """With the blocks below changed in the weights, as an implementation without a resumed forward would have it."""
    lm = random_model("gpt2")
    requests, resources, blocks = several(lm), resources_for(lm), [0, 2]
    editor = Memit(SETTINGS, resources)
    updates = editor.edit_many(lm, requests, blocks, memory=1)  # each request in a batch of its own
    assert [len(part) for part in packs(lm, requests, 1, 1)] == [1, 1, 1]
    assert [len(part) for part in packs(lm, requests, 1, None)] == [3]
    for one, other in zip(updates, editor.edit_many(lm, requests, blocks), strict=True):
        torch.testing.assert_close(one.matrix(), other.matrix(), rtol=1e-5, atol=1e-9)
    h, delta = new_values(lm, requests, SETTINGS, 2)
    below: tuple[LowRank, ...] = ()
    for left, update in zip((2, 1), updates, strict=True):
        with applied(lm, Edit(0, below, 0.0, 0.0, 0)):
            seen = [spread.carried_of(lm, request, 1)[0] for request in requests]
            parts = [each.seen(each.recording.h[update.layer], update.layer, 2) for each in seen]
        keys, hidden = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        moment = editor.whiteners.of(update.layer).factor @ editor.whiteners.of(update.layer).factor.T
        right = ((h + delta - hidden) / left).T @ keys
        torch.testing.assert_close(update.matrix() @ (2.0 * moment + keys.T @ keys), right, rtol=1e-5, atol=1e-8)
        below = (*below, update)
    with pytest.raises(UserError, match="ascending"):
        editor.edit_many(lm, requests, [2, 0])
    with pytest.raises(UserError, match="resumed forward only"):
        Memit(SETTINGS, replace(resources, path="plain")).edit_many(lm, requests, blocks)


def test_the_same_by_hand_with_the_whole_model_in_float64() -> None:
    """Nothing of the project's forward, objective or solver: autograd on the model, Adam in five lines, normal
    equations by the inverse.
    """
    lm = random_model("gpt2")
    request, resources = request_for(lm), resources_for(lm)
    model, blocks, top = lm.model, lm.model.transformer.h, 2
    settings = replace(SETTINGS, steps=5)
    whole = [torch.tensor([prompt.ids]) for prompt in (*request.prompts, request.essence)]
    sites = [prompt.last_subject for prompt in (*request.prompts, request.essence)]

    def logits(delta: torch.Tensor, i: int) -> torch.Tensor:
        def add(_module: Any, _args: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            moved = torch.cat([h[:, : sites[i]], h[:, sites[i] : sites[i] + 1] + delta, h[:, sites[i] + 1 :]], 1)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        handle = blocks[top].register_forward_hook(add)
        try:
            return model(whole[i]).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    def states(i: int) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        keys: dict[int, torch.Tensor] = {}
        handles = [
            block.mlp.c_proj.register_forward_pre_hook(lambda _m, args, b=b: keys.update({b: args[0][0, sites[i]]}))
            for b, block in enumerate(blocks)
        ]
        with torch.no_grad():
            hidden = model(whole[i], output_hidden_states=True).hidden_states[top + 1][0, sites[i]]
        for handle in handles:
            handle.remove()
        return hidden, keys

    h0 = states(0)[0]
    base = logits(torch.zeros_like(h0), len(whole) - 1)[sites[-1]].detach()
    delta, first, second = torch.zeros_like(h0), torch.zeros_like(h0), torch.zeros_like(h0)
    for step in range(1, settings.steps + 1):
        delta.requires_grad_(True)
        nll = torch.zeros((), dtype=torch.float64)
        for i, prompt in enumerate(request.prompts):
            logs = logits(delta, i)
            said = [logs[at, prompt.ids[at + 1]] for at in range(prompt.target_start - 1, len(prompt.ids) - 1)]
            nll = nll - torch.stack(said).mean() / len(request.prompts)
        now = logits(delta, len(whole) - 1)[sites[-1]]
        kl = (now.exp() * (now - base)).sum()
        norm = delta.norm() if step > 1 else (delta * 0).sum()  # whose gradient at 0 is taken for 0
        (g,) = torch.autograd.grad(nll + 0.0625 * kl + 0.5 * norm / h0.norm() ** 2, delta)
        with torch.no_grad():
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
            delta = delta - 0.5 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            delta = delta * min(1.0, float(0.75 * h0.norm() / delta.norm()))
    z = (h0 + delta).detach()

    (edit,) = Memit(settings, resources).edit(lm, request, [1])
    assert edit.delta_norm == pytest.approx(float(delta.norm()), rel=1e-6)
    saved = {b: block.mlp.c_proj.weight.detach().clone() for b, block in enumerate(blocks)}
    for left, update in zip((3, 2, 1), edit.updates, strict=True):
        hidden, _ = states(0)
        k = torch.stack([states(i)[1][update.layer] for i in range(len(request.prompts))]).mean(0)
        moment = resources.moment(update.layer)
        moment = moment + 1e-4 * moment.diagonal().mean() * torch.eye(len(k))
        by_hand = torch.outer((z - hidden) / left, k) @ torch.linalg.inv(2.0 * moment + torch.outer(k, k))
        assert (update.matrix() - by_hand).norm() <= 1e-6 * by_hand.norm()
        blocks[update.layer].mlp.c_proj.weight.data += by_hand.T
    for b, weight in saved.items():
        blocks[b].mlp.c_proj.weight.data.copy_(weight)


def test_a_block_without_a_moment_and_a_loss_that_is_no_number_fail_with_a_reason() -> None:
    lm = random_model("llama")
    resources = resources_for(lm)
    broken = replace(resources, moment=lambda layer: resources.moment(layer) * (layer != 0))
    edits = Memit(replace(SETTINGS, window=1), broken).edit(lm, request_for(lm), [0, 1])
    assert [edit.status == "ok" for edit in edits] == [False, True]
    assert "block 0" in edits[0].status
    assert edits[0].updates == ()
    wild = replace(SETTINGS, learning_rate=float("inf"))
    assert "not a finite number" in Memit(wild, resources).edit(lm, request_for(lm), [1])[0].status
    with pytest.raises(UserError, match="a has no finite new value"):
        Memit(wild, resources).edit_many(lm, several(lm), [1])
