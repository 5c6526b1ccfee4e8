"""Fine-tuning: its bound to the last bit, and both paths against each other and against a third written here."""

import copy
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import accelerate
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.edit.finetune import FineTune, FineTuneSettings, settle_
from pipeline.edit.methods import METHODS, load
from pipeline.edit.protocol import Dense, Edit, EditRequest, Resources
from pipeline.lm.model import LanguageModel, wrap
from pipeline.lm.plain import Batch, target_probabilities
from pipeline.measure.edited import applied
from pipeline.settings.fields import PROBLEMS
from tests.conftest import ROOT
from tests.edit.test_forcing import Watch, watched
from tests.edit.test_rome import request_for
from tests.lm.families import FAST_EDITED, random_model

SETTINGS = FineTuneSettings(steps=10, learning_rate=5e-3, max_change=1e-2, window=3, stop_loss=None, noise_copies=3)

FLOAT64_THROUGHOUT = ("gpt2", "gptj", "gpt_neox", "opt", "phi", "stablelm", "falcon")


def no_moment(layer: int) -> torch.Tensor:
    raise AssertionError(f"the second moment of block {layer} was asked for")


FAST, PLAIN = Resources(no_moment), Resources(no_moment, path="plain")


def changes(edit: Edit) -> dict[int, torch.Tensor]:
    assert all(isinstance(update, Dense) for update in edit.updates)
    return {update.layer: update.matrix() for update in edit.updates}


def probability(lm: LanguageModel, request: EditRequest, edit: Edit | None) -> float:
    with applied(lm, edit):
        return float(target_probabilities(lm, Batch.of(request.prompts[:1], lm.device))[0])


def assert_same(one: Edit, other: Edit, bound: float) -> None:
    assert (one.layer, one.steps, one.status, one.acts) == (other.layer, other.steps, other.status, True)
    assert changes(one).keys() == changes(other).keys()
    for block, change in changes(one).items():
        assert (change - changes(other)[block]).norm() <= bound * change.norm()
    assert one.loss == pytest.approx(other.loss, rel=bound)
    assert one.delta_norm == pytest.approx(other.delta_norm, rel=bound)


@pytest.fixture(params=FAST_EDITED)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return random_model(request.param)


def test_fast_equals_plain_in_float64(lm: LanguageModel) -> None:
    """Adam divides a gradient by its own size, and so makes a large step of one that is rounding noise; but its 1e-8
    under the line is far above what float64 rounds to. Families whose norms or softmax transformers computes in
    float32, whatever the model's type is, have noise above that now and then, as batches of other shapes round
    otherwise.
    """
    bound = 1e-8 if lm.arch.config.model_type in FLOAT64_THROUGHOUT else 1e-5
    free = replace(SETTINGS, max_change=None, window=1)
    for settings, request in (
        (SETTINGS, request_for(lm)),
        (free, request_for(lm)),
        (SETTINGS, request_for(lm, noised=True)),
        (SETTINGS, request_for(lm, minimise=True)),
    ):
        fast = FineTune(settings, FAST).edit(lm, request, range(lm.n_layers))
        plain = FineTune(settings, PLAIN).edit(lm, request, range(lm.n_layers))
        for one, other in zip(fast, plain, strict=True):
            assert_same(one, other, bound)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2", "granite"])
def test_fast_equals_plain_in_float32(family: str) -> None:
    """Entries whose gradient is no more than noise go either way in float32: what the edit does is compared."""
    lm = random_model(family, torch.float32)
    request = request_for(lm)
    for one, other in zip(
        FineTune(SETTINGS, FAST).edit(lm, request, range(lm.n_layers)),
        FineTune(SETTINGS, PLAIN).edit(lm, request, range(lm.n_layers)),
        strict=True,
    ):
        assert one.loss == pytest.approx(other.loss, rel=1e-3)
        assert one.delta_norm == pytest.approx(other.delta_norm, rel=1e-3)
        assert probability(lm, request, one) == pytest.approx(probability(lm, request, other), rel=1e-3)


def from_scratch(
    lm: LanguageModel, ids: torch.Tensor, start: int, blocks: range, settings: FineTuneSettings, sign: float
) -> tuple[list[torch.Tensor], float]:
    """The weights of `blocks` as stored, after Adam (Kingma and Ba 2015, algorithm 1) on them in the model itself;
    and the last loss. sign: -1 raises the probability of ids[start:] by its NLL, +1 lowers the probability.
    """
    model = copy.deepcopy(lm.model)
    modules = wrap(model, lm.tokenizer).arch.down_projs
    weights = [modules[block].weight.requires_grad_(True) for block in blocks]
    first = [w.detach().clone() for w in weights]
    m, v = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for step in range(1, settings.steps + 1):
        logs = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        mean = logs[range(start - 1, len(ids) - 1), ids[start:]].mean()
        loss = mean.exp() if sign > 0 else -mean
        for i, gradient in enumerate(torch.autograd.grad(loss, weights)):
            m[i] = 0.9 * m[i] + 0.1 * gradient
            v[i] = 0.999 * v[i] + 0.001 * gradient**2
            walk = m[i] / (1 - 0.9**step) / ((v[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            moved = weights[i].detach() - settings.learning_rate * walk
            if settings.max_change is not None:
                moved = torch.minimum(
                    torch.maximum(moved, first[i] - settings.max_change), first[i] + settings.max_change
                )
            weights[i].data.copy_(moved)
    return [w.detach() for w in weights], float(loss.detach())


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("minimise", [False, True])
@pytest.mark.parametrize("bound", [None, 1e-2])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "olmo2", "granite"])
def test_it_is_adam_on_the_weights(family: str, bound: float | None, minimise: bool, path: str) -> None:
    lm = random_model(family)
    request, settings = request_for(lm, minimise=minimise), replace(SETTINGS, max_change=bound)
    bare, blocks = request.prompts[0], range(1, 4)
    expected, loss = from_scratch(
        lm, torch.tensor(bare.ids), bare.target_start, blocks, settings, 1.0 if minimise else -1.0
    )
    (edit,) = FineTune(settings, Resources(no_moment, path=path)).edit(lm, request, [2])
    assert edit.loss == pytest.approx(loss, rel=1e-7)
    with applied(lm, edit):
        for block, weight in zip(blocks, expected, strict=True):
            assert (lm.arch.down_projs[block].weight - weight).norm() <= 1e-7 * changes(edit)[block].norm()


def largest_exact(weight: torch.Tensor, stored: torch.Tensor) -> Fraction:
    pairs = zip(weight.double().flatten().tolist(), stored.double().flatten().tolist(), strict=True)
    return max(abs(Fraction(one) - Fraction(other)) for one, other in pairs)


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_stored_weight_leaves_the_bound(family: str, dtype: torch.dtype, path: str) -> None:
    lm = random_model(family, dtype)
    before = {b: lm.arch.down_projs[b].weight.detach().clone() for b in range(lm.n_layers)}
    for bound in (5e-4, 1e-3):  # float32 is above the one and below the other
        settings = replace(SETTINGS, max_change=bound)
        for edit in FineTune(settings, Resources(no_moment, path=path)).edit(lm, request_for(lm), [0, 2]):
            with applied(lm, edit):
                moved = [largest_exact(w, lm.arch.down_projs[b].weight.detach()) for b, w in before.items()]
            assert max(moved) <= Fraction(bound)
            assert max(moved) >= Fraction(bound) * Fraction(9, 10)  # and it is used
            assert [b for b, far in enumerate(moved) if far] == sorted(changes(edit))


@given(
    st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=8),
    st.sampled_from([1e-5, 2e-5, 5e-4, 1e-3, 0.25]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_bound_holds_for_any_weight(values: list[float], bound: float, dtype: torch.dtype) -> None:
    weight = torch.tensor([*values, bound, -bound, 0.0, bound / 3], dtype=dtype)
    weight = weight.repeat(4)
    change = torch.tensor([bound, -bound, bound * (1 + 1e-7), 0.7 * bound], dtype=torch.float64).repeat_interleave(
        len(weight) // 4
    )
    change = change.to(torch.float64 if dtype == torch.float64 else torch.float32)
    asked = change.clone()
    settle_(change, weight, bound)
    assert largest_exact(weight, weight + change.to(dtype)) <= Fraction(bound)
    assert bool((change * asked >= 0).all())
    assert bool((change.abs() <= asked.abs()).all())
    if dtype == torch.float64:
        assert bool((change - asked).abs().max() <= 1.1e-7 * bound + 1e-15)  # never further than it has to


@pytest.mark.parametrize("path", ["fast", "plain"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_model_is_bit_for_bit_what_it_was(family: str, path: str) -> None:
    lm = random_model(family, torch.float32)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    editor = FineTune(SETTINGS, Resources(no_moment, path=path))
    editor.edit(lm, request_for(lm), range(lm.n_layers))

    def broken(_module: torch.nn.Module, _args: object, _output: object) -> None:
        calls.append(1)
        if len(calls) > 4:
            raise KeyError

    calls: list[int] = []
    handle = lm.arch.final_norm.register_forward_hook(broken)
    try:
        with pytest.raises(KeyError):
            editor.edit(lm, request_for(lm, noised=True), [1])
    finally:
        handle.remove()
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_the_last_block_acts_and_erasure_lowers_what_injection_raises(path: str) -> None:
    lm = random_model("llama")
    for minimise in (False, True):
        request = request_for(lm, minimise=minimise)
        before = probability(lm, request, None)
        for edit in FineTune(SETTINGS, Resources(no_moment, path=path)).edit(lm, request, range(lm.n_layers)):
            after = probability(lm, request, edit)
            assert after < 0.9 * before if minimise else after > 1.1 * before
            assert edit.acts


def test_windows_are_centred_and_cut_at_the_ends() -> None:
    lm = random_model("llama")
    for width, expected in ((1, [[0], [1], [2], [3]]), (3, [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]])):
        editor = FineTune(replace(SETTINGS, steps=1, window=width), FAST)
        edits = editor.edit(lm, request_for(lm), range(lm.n_layers))
        assert [[update.layer for update in edit.updates] for edit in edits] == expected
        assert editor.window == width
        for edit in edits:
            squares = sum(float((change**2).sum()) for change in changes(edit).values())
            assert edit.delta_norm == pytest.approx(squares**0.5)


def test_edits_at_once_and_their_order_do_not_matter(lm: LanguageModel) -> None:
    for request in (request_for(lm), request_for(lm, noised=True)):
        settings = replace(SETTINGS, steps=4)
        whole = FineTune(settings, FAST).edit(lm, request, [3, 0, 2, 1])
        parts = FineTune(settings, FAST).edit(lm, request, [3, 0, 2, 1], memory=1)
        assert [edit.layer for edit in whole] == [3, 0, 2, 1]
        for one, other in zip(whole, parts, strict=True):
            assert_same(one, other, 1e-5)


@pytest.mark.parametrize("noised", [False, True])
def test_an_edit_stops_once_its_loss_is_low_and_erasure_does_not(noised: bool) -> None:
    lm = random_model("llama")
    request, layers = request_for(lm, noised=noised), range(lm.n_layers)
    full = FineTune(SETTINGS, FAST).edit(lm, request, layers)
    bound = sorted(edit.loss for edit in full)[1]  # some get there and some do not
    settings = replace(SETTINGS, stop_loss=bound)
    early = FineTune(settings, FAST).edit(lm, request, layers)
    plain = FineTune(settings, PLAIN).edit(lm, request, layers)
    assert 0 < min(edit.steps for edit in early) < SETTINGS.steps
    for edit, other, whole in zip(early, plain, full, strict=True):
        assert_same(edit, other, 1e-7)
        if edit.loss < bound:  # the update of that step is not made: so many steps alone give the same
            (alone,) = FineTune(replace(SETTINGS, steps=edit.steps), FAST).edit(lm, request, [edit.layer])
            assert edit.delta_norm == pytest.approx(alone.delta_norm, rel=1e-6)
        else:
            assert_same(edit, whole, 1e-7)
    erased = FineTune(replace(settings, stop_loss=10.0), FAST).edit(lm, request_for(lm, minimise=True), layers)
    assert {edit.steps for edit in erased} == {SETTINGS.steps}


def noise_of(lm: LanguageModel, work: Callable[[], object]) -> set[str]:
    with Watch(lm) as watch:
        work()
    return watch.seen[False]


def test_forcing_draws_anew_for_each_copy_and_step_and_both_paths_alike() -> None:
    lm = random_model("llama")
    request = request_for(lm, noised=True)
    assert request.noise is not None
    bare = request.prompts[0]
    assert bare.subject is not None
    fast = noise_of(lm, lambda: FineTune(SETTINGS, FAST).edit(lm, request, [0, 3]))
    plain = noise_of(lm, lambda: FineTune(SETTINGS, PLAIN).edit(lm, request, [3]))
    assert len(fast) == len(plain) == SETTINGS.steps * SETTINGS.noise_copies * (bare.subject[1] - bare.subject[0])
    drawn = [torch.tensor(eval(row)) for rows in (fast, plain) for row in sorted(rows)]
    tables = [request.noise.table([bare] * SETTINGS.noise_copies, step) for step in range(SETTINGS.steps)]
    told = torch.cat(tables).double()
    assert all(float((told - row).abs().amax(-1).min()) < 2e-5 for row in drawn)
    few = noise_of(lm, lambda: FineTune(replace(SETTINGS, noise_copies=1), FAST).edit(lm, request, [0]))
    assert len(few) == SETTINGS.steps * (bare.subject[1] - bare.subject[0])


@pytest.mark.parametrize("path", ["fast", "plain"])
def test_a_draw_of_editing_is_never_one_of_scoring(path: str, tmp_path: Path) -> None:
    watch = watched(random_model("llama"), tmp_path, path, 5, 3, 1, 0, "ft_5")
    assert watch.seen[True]
    assert len(watch.seen[False]) >= 5
    assert not watch.seen[True] & watch.seen[False]


def test_a_loss_that_is_no_number_fails_with_a_reason() -> None:
    lm = random_model("llama")
    wild = replace(SETTINGS, learning_rate=float("inf"), max_change=None)
    for resources in (FAST, PLAIN):
        edits = FineTune(wild, resources).edit(lm, request_for(lm), [0, 2])
        assert all("not a finite number" in edit.status and not edit.updates for edit in edits)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_whose_blocks_are_moved_as_they_run_gives_the_same_edits(family: str, tmp_path: Path) -> None:
    lm = random_model(family)
    request, layers = request_for(lm), range(lm.n_layers)
    here = FineTune(SETTINGS, FAST).edit(lm, request, layers)
    away = tuple(f"{lm.arch.names.blocks}.{layer}." for layer in (1, 3))
    leaves = [name for name, module in lm.model.named_modules() if not list(module.children())]
    places = {name: "disk" if name.startswith(away) else "cpu" for name in leaves}
    spread = wrap(
        accelerate.dispatch_model(copy.deepcopy(lm.model), places, main_device="cpu", offload_dir=tmp_path),
        lm.tokenizer,
    )
    assert spread.arch.down_projs[3].weight.device.type == "meta"
    for edit, other in zip(FineTune(SETTINGS, FAST).edit(spread, request, layers), here, strict=True):
        assert_same(edit, other, 1e-9)


def test_the_four_methods_are_one_editor() -> None:
    four = [METHODS[name] for name in ("ft", "ft_l", "ft_1", "ft_5")]
    assert {method.editor for method in four} == {FineTune}
    assert not any(method.moments for method in four)


@pytest.mark.parametrize(
    ("preset", "ft_l", "ft_1", "ft_5"),
    [
        ("paper-gptj", 5e-5, (1e-4, 1e-5, 1e-5, 1e-5, 1e-4), (2e-5, 2e-5, 1e-5, 1e-5, 1e-4)),
        ("paper-gpt2-xl", 5e-4, (1e-3, 1e-5, 1e-5, 1e-5, 5e-4), (1e-4, 2e-5, 1e-5, 1e-5, 5e-5)),
    ],
)
def test_paper_presets_hold_the_published_bounds(
    preset: str, ft_l: float, ft_1: tuple[float, ...], ft_5: tuple[float, ...]
) -> None:
    params = load(ROOT / f"presets/{preset}.yaml")
    assert params.edit.methods == ("rome", "memit", "ft_1", "ft_5")
    for name, window, stop, bounds in (
        ("ft", 1, 1e-2, [None] * 5),
        ("ft_l", 1, 1e-2, [ft_l] * 5),
        ("ft_1", 1, None, ft_1),
        ("ft_5", 5, None, ft_5),
    ):
        for problem, bound in zip(PROBLEMS, bounds, strict=True):
            settings = FineTuneSettings(**params.for_problem(name, problem))
            steps = 50 if problem == "fact_forcing" and name in ("ft_1", "ft_5") else 25
            assert settings == FineTuneSettings(
                steps=steps, learning_rate=5e-4, max_change=bound, window=window, stop_loss=stop, noise_copies=10
            )
