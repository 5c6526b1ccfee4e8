"""ROME's algebra, and its fast path against the plain one on every family."""

import contextlib
import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal

import accelerate
import pytest
import torch

from pipeline.edit.moments import Whitener, second_moments
from pipeline.edit.objective import Objective, target_logs_and_kl
from pipeline.edit.protocol import Edit, EditRequest, LowRank, Resources
from pipeline.edit.rome import Rome, RomeSettings
from pipeline.edit.value import plain_delta
from pipeline.lm.model import LanguageModel, wrap
from pipeline.lm.noise import FreshNoise
from pipeline.lm.plain import Batch, full_logits
from pipeline.lm.prompts import Prompt, pack, tokenize
from pipeline.measure.edited import applied
from tests.lm.families import FAST_EDITED, random_model

SETTINGS = RomeSettings(
    steps=20,
    learning_rate=0.5,
    kl_factor=0.0625,
    weight_decay=0.5,
    clamp_norm_factor=4.0,
    key="prompt",
    leave_when=None,
    stop_loss=None,
    erasure_loss="mean_of_exp",
)
PREFIXES = ("", "One two three. ", "Anna works. ")


def request_for(lm: LanguageModel, *, noised: bool = False, minimise: bool = False) -> EditRequest:
    subject, text = "France", "The capital of France is"

    def prompt(prefix: str) -> Prompt:
        return tokenize(lm.tokenizer, prefix + text, subject=subject, target="Oslo", add_bos=lm.add_bos)

    essence = tokenize(lm.tokenizer, f"{subject} is a", subject=subject, add_bos=lm.add_bos)
    noise = FreshNoise(0, "a", 0.1, lm.arch.embedding.weight.shape[1]) if noised else None
    return EditRequest("a", tuple(prompt(prefix) for prefix in PREFIXES), essence, noise, minimise)


def resources_for(lm: LanguageModel, path: str = "fast") -> Resources:
    ids = torch.randint(5, 200, (40, 16), generator=torch.Generator().manual_seed(0))
    moments = second_moments(lm, [ids], range(lm.n_layers))
    return Resources(lambda layer: moments[layer].double(), 1e-4, path)


def ridge_of(resources: Resources, layer: int) -> torch.Tensor:
    """What is added to the block's second moment."""
    moment = resources.moment(layer)
    return resources.ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


def factors(edit: Edit) -> tuple[torch.Tensor, torch.Tensor]:
    """Left and right of the one rank-one update, (d,) and (d_ff,)."""
    (update,) = edit.updates
    assert isinstance(update, LowRank)
    return update.left[:, 0], update.right[:, 0]


def keys_and_outputs(lm: LanguageModel, prompt: Prompt, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of the down-projection at every token of the bare prompt."""
    seen: list[torch.Tensor] = []

    def hook(_module: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.extend((args[0].reshape(-1, args[0].shape[-1]), output.reshape(-1, output.shape[-1])))

    handle = lm.arch.down_projs[layer].register_forward_hook(hook)
    full_logits(lm, Batch.of([prompt], lm.device))
    handle.remove()
    return seen[0], seen[1]


@pytest.fixture(params=FAST_EDITED)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return random_model(request.param)


def test_fast_equals_plain_in_float64(lm: LanguageModel) -> None:
    # transformers computes Gemma 2's softmax in float32 whatever the model's type is, and Adam amplifies that.
    bound = 1e-3 if lm.arch.config.model_type == "gemma2" else 1e-8
    resources = resources_for(lm)
    for request in (request_for(lm), request_for(lm, noised=True), request_for(lm, minimise=True)):
        layers = range(lm.n_layers)
        fast = Rome(SETTINGS, resources).edit(lm, request, layers)
        plain = Rome(SETTINGS, replace(resources, path="plain")).edit(lm, request, layers)
        for one, other in zip(fast, plain, strict=True):
            assert (one.layer, one.steps, one.status) == (other.layer, other.steps, "ok")
            left, right = factors(one)[0], factors(other)[0]
            assert (left - right).norm() <= bound * right.norm()
            assert one.loss == pytest.approx(other.loss, rel=bound)
            assert one.delta_norm == pytest.approx(other.delta_norm, rel=bound)
            assert one.denominator == pytest.approx(other.denominator, rel=bound)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox", "llama", "qwen2"])
def test_fast_equals_plain_in_float32(family: str) -> None:
    lm = random_model(family, torch.float32)
    request, resources = request_for(lm), resources_for(lm)
    fast = Rome(SETTINGS, resources).edit(lm, request, range(lm.n_layers))
    for edit in fast:
        site, delta, _, _ = plain_delta(lm, request, SETTINGS, edit.layer)
        assert edit.delta_norm == pytest.approx(float(delta.norm()), rel=1e-3)
        value = factors(edit)[0] * (factors(edit)[1] @ site.keys[0].double())
        assert (value - delta).norm() <= 1e-3 * (site.v0 + delta).norm()


def test_the_written_out_gradient_is_autograds() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 11, dtype=torch.float64, requires_grad=True)
    targets, base = torch.tensor([0, 7, 7, 10]), torch.randn(11, dtype=torch.float64).log_softmax(-1)
    logs = logits.log_softmax(-1)
    naive = torch.stack([logs[:, i, target] for i, target in enumerate(targets)], 1)
    divergence = torch.nn.functional.kl_div(base, logs[:, -1], log_target=True, reduction="none").sum(-1)
    reads, kl = target_logs_and_kl(logits, targets, base)
    torch.testing.assert_close((reads, kl), (naive, divergence))
    assert torch.autograd.gradcheck(lambda x: target_logs_and_kl(x, targets, base), logits)


def test_rows_at_once_do_not_matter(lm: LanguageModel) -> None:
    bound = 1e-3 if lm.arch.config.model_type == "gemma2" else 1e-9
    resources = resources_for(lm)
    few = replace(SETTINGS, steps=5)  # under noise
    for settings, request in ((SETTINGS, request_for(lm)), (few, request_for(lm, noised=True))):
        whole = Rome(settings, resources).edit(lm, request, range(lm.n_layers))
        parts = Rome(settings, resources).edit(lm, request, range(lm.n_layers), memory=1)
        for one, other in zip(whole, parts, strict=True):
            assert (factors(one)[0] - factors(other)[0]).norm() <= bound * factors(other)[0].norm()


@pytest.mark.parametrize("key", ["prompt", "mean"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_edit_maps_the_key_to_the_value_and_has_rank_one(family: str, key: Literal["prompt", "mean"]) -> None:
    lm = random_model(family)
    settings = replace(SETTINGS, key=key)
    request, resources = request_for(lm), resources_for(lm)
    layer = 1
    edit = Rome(settings, resources).edit(lm, request, [layer])[0]
    site, delta, _, _ = plain_delta(lm, request, settings, layer)
    weight = lm.arch.down_projs[layer].weight
    before = weight.detach().clone()
    target_key = site.keys[0] if key == "prompt" else site.keys.mean(0)
    with applied(lm, edit):
        change = weight.detach() - before
        out = lm.arch.down_projs[layer](target_key[None])[0]
    bound = 1e-3 if family == "gemma2" else 1e-8
    assert (out - (site.v0 + delta)).norm() <= bound * out.norm()
    u = torch.linalg.solve(resources.moment(layer) + ridge_of(resources, layer), site.keys.mean(0))
    cosine = float(u @ target_key / (u.norm() * target_key.norm()))
    assert edit.denominator == pytest.approx(cosine, rel=bound)
    # The update is as large as the denominator is small: |delta| / (|k| cosine), for its left side over |u|.
    left, right = factors(edit)
    assert float(left.norm() * right.norm() * target_key.norm() * cosine) == pytest.approx(
        float((site.v0 + delta - lm.arch.down_projs[layer](target_key[None])[0]).norm()), rel=bound
    )
    singular = torch.linalg.svdvals(change)
    assert singular[1] <= 1e-12 * singular[0]
    assert torch.equal(weight, before)


def test_keys_c_orthogonal_to_the_mean_key_do_not_move() -> None:
    lm = random_model("llama")
    request, resources = request_for(lm), resources_for(lm)
    edit = Rome(SETTINGS, resources).edit(lm, request, [2])[0]
    site, _, _, _ = plain_delta(lm, request, SETTINGS, 2)
    whitener = Whitener(resources.moment(2), resources.ridge)
    k_star = site.keys.mean(0)
    other = torch.randn(len(k_star), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    inner = (other @ whitener.solve(k_star)) / (k_star @ whitener.solve(k_star))
    orthogonal = other - inner * k_star
    projection = lm.arch.down_projs[2]
    before, plain = projection(orthogonal[None]), projection(other[None])
    with applied(lm, edit):
        assert (projection(orthogonal[None]) - before).norm() <= 1e-10 * before.norm()
        assert (projection(other[None]) - plain).norm() > 1e-6 * plain.norm()


def test_weights_are_put_back_bit_for_bit_even_after_an_error() -> None:
    lm = random_model("gpt2", torch.float32)
    edits = Rome(SETTINGS, resources_for(lm)).edit(lm, request_for(lm), range(lm.n_layers - 1))
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    for edit in edits:
        weight = lm.arch.down_projs[edit.layer].weight
        with applied(lm, edit):
            assert not torch.equal(weight, before[f"transformer.h.{edit.layer}.mlp.c_proj.weight"])
        with contextlib.suppress(KeyError), applied(lm, edit):
            raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_delta_is_clamped_and_erasure_lowers_the_probability() -> None:
    lm = random_model("llama")
    tight = replace(SETTINGS, clamp_norm_factor=0.1, weight_decay=0.0)
    edit = Rome(tight, resources_for(lm)).edit(lm, request_for(lm), [1])[0]
    site, _, _, _ = plain_delta(lm, request_for(lm), tight, 1)
    assert edit.delta_norm == pytest.approx(0.1 * float(site.v0.norm()), rel=1e-6)


def test_leaving_early_stops_at_the_probability_and_only_there() -> None:
    lm = random_model("llama")
    request, resources = request_for(lm), resources_for(lm)
    loose = replace(SETTINGS, weight_decay=0.0, kl_factor=0.0, clamp_norm_factor=100.0)
    full = Rome(loose, resources).edit(lm, request, range(lm.n_layers))
    early = Rome(replace(loose, leave_when=0.5), resources).edit(lm, request, range(lm.n_layers))
    assert [edit.steps for edit in full] == [20, 20, 20, 0]  # nothing leads from the last block to a later token
    assert any(edit.steps < 20 for edit in early)
    plain = Rome(replace(loose, leave_when=0.5), replace(resources, path="plain")).edit(lm, request, range(lm.n_layers))
    assert [edit.steps for edit in early] == [edit.steps for edit in plain]


@pytest.mark.parametrize("noised", [False, True])
def test_an_edit_stops_once_its_loss_is_low_and_erasure_does_not(noised: bool) -> None:
    lm = random_model("llama")
    request, resources, layers = request_for(lm, noised=noised), resources_for(lm), range(lm.n_layers - 1)
    loose = replace(SETTINGS, weight_decay=0.0, kl_factor=0.0, clamp_norm_factor=100.0)
    full = Rome(loose, resources).edit(lm, request, layers)
    bound = sorted(edit.loss for edit in full)[1]  # some get there and some do not
    settings = replace(loose, stop_loss=bound)
    early = Rome(settings, resources).edit(lm, request, layers)
    plain = Rome(settings, replace(resources, path="plain")).edit(lm, request, layers)
    assert 0 < min(edit.steps for edit in early) < 20
    for edit, other, whole in zip(early, plain, full, strict=True):
        assert (edit.steps, edit.loss < bound) == (other.steps, edit.steps < 20)
        assert edit.delta_norm == pytest.approx(other.delta_norm, rel=1e-6)
        if edit.steps < 20:  # the update of that step is not made: so many steps alone give the same
            (alone,) = Rome(replace(loose, steps=edit.steps), resources).edit(lm, request, [edit.layer])
            assert edit.delta_norm == pytest.approx(alone.delta_norm, rel=1e-6)
        else:
            assert edit.delta_norm == pytest.approx(whole.delta_norm, rel=1e-6)
    erased = Rome(replace(settings, stop_loss=10.0), resources).edit(lm, request_for(lm, minimise=True), layers)
    assert {edit.steps for edit in erased} == {20}


def test_the_two_forms_of_erasure() -> None:
    """p over the prompts 0.5 and 0.02: their mean, or their geometric mean."""
    lm = random_model("llama")
    prompts = tuple(tokenize(lm.tokenizer, text, target="1", add_bos=False) for text in ("One", "Two"))
    request = replace(
        request_for(lm, minimise=True), prompts=tuple(replace(p, ids=p.ids[:2], target_start=1) for p in prompts)
    )
    p = torch.tensor([0.5, 0.02], dtype=torch.float64)
    logits = torch.full((1, 3, 300), -1e9, dtype=torch.float64)
    for row, prompt in enumerate(request.prompts):
        logits[0, row, prompt.target_ids[0]], logits[0, row, 7] = p[row].log(), (1 - p[row]).log()
    base = torch.zeros(300, dtype=torch.float64).log_softmax(-1)
    logits[0, 2] = base
    none = torch.zeros(1, 4, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    forms: list[tuple[Literal["mean_of_exp", "exp_of_mean"], float]] = [("mean_of_exp", 0.26), ("exp_of_mean", 0.1)]
    for form, expected in forms:
        settings = replace(SETTINGS, erasure_loss=form)
        assert float(Objective(request, settings, base)(logits, *none)[0]) == pytest.approx(expected)
        raising = replace(request, minimise=False)
        assert float(Objective(raising, settings, base)(logits, *none)[0]) == pytest.approx(-float(p.log().mean()))


def test_a_singular_moment_and_a_loss_that_is_no_number_fail_with_a_reason() -> None:
    lm = random_model("llama")
    resources = resources_for(lm)

    def moment(layer: int) -> torch.Tensor:
        return resources.moment(layer) * (layer != 1)

    edits = Rome(SETTINGS, replace(resources, moment=moment)).edit(lm, request_for(lm), range(lm.n_layers))
    assert [edit.status == "ok" for edit in edits] == [True, False, True, True]
    assert "singular" in edits[1].status
    assert edits[1].updates == ()
    wild = replace(SETTINGS, learning_rate=float("inf"))
    assert all("not a finite number" in edit.status for edit in Rome(wild, resources).edit(lm, request_for(lm), [0, 2]))


def test_the_bare_prompt_comes_first_and_a_shared_site_is_changed_once() -> None:
    """Where the essence prompt begins as the bare one does, packing makes their subject one token."""
    lm = random_model("llama")
    text = "France is a country whose capital is"
    prompts = tuple(
        tokenize(lm.tokenizer, prefix + text, subject="France", target="Oslo", add_bos=False) for prefix in PREFIXES
    )
    essence = tokenize(lm.tokenizer, "France is a", subject="France", add_bos=False)
    assert pack([prompts[0].ids, essence.ids]).where[0][: len(essence.ids)] == pack([essence.ids]).where[0]
    request = EditRequest("a", prompts, essence, None, False)
    resources = resources_for(lm)
    fast: list[Edit] = Rome(SETTINGS, resources).edit(lm, request, [0, 2])
    plain = Rome(SETTINGS, replace(resources, path="plain")).edit(lm, request, [0, 2])
    for one, other in zip(fast, plain, strict=True):
        # Llama's norm rounds to float32 in transformers, and Adam amplifies that a little.
        assert (factors(one)[0] - factors(other)[0]).norm() <= 1e-6 * factors(other)[0].norm()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_model_whose_blocks_are_moved_as_they_run_gives_the_same_edits(family: str, tmp_path: Path) -> None:
    """As `model.device_map` does it: half the weights wait elsewhere (here on the disk) until their block is called."""
    lm = random_model(family)
    request, resources, layers = request_for(lm), resources_for(lm), range(lm.n_layers)
    here = Rome(SETTINGS, resources).edit(lm, request, layers)
    away = tuple(f"{lm.arch.names.blocks}.{layer}." for layer in (1, 3))
    leaves = [name for name, module in lm.model.named_modules() if not list(module.children())]
    places = {name: "disk" if name.startswith(away) else "cpu" for name in leaves}
    model = accelerate.dispatch_model(copy.deepcopy(lm.model), places, main_device="cpu", offload_dir=tmp_path)
    spread = wrap(model, lm.tokenizer)
    assert spread.arch.down_projs[3].weight.device.type == "meta"
    for edit, other in zip(Rome(SETTINGS, resources).edit(spread, request, layers), here, strict=True):
        torch.testing.assert_close(factors(edit)[0], factors(other)[0])


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_only_the_last_block_is_marked_as_unable_to_act(path: str) -> None:
    lm = random_model("llama")
    edits = Rome(SETTINGS, resources_for(lm, path)).edit(lm, request_for(lm), range(lm.n_layers))
    assert [edit.acts for edit in edits] == [True] * (lm.n_layers - 1) + [False]
    assert edits[-1].delta_norm == 0
