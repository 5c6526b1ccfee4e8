"""Integrated gradients: they add up to what the key does, and the fast path is the plain one, on every family."""

import pytest
import torch

from pipeline.facts.readers import read_facts
from pipeline.lm.attribution import LARGE, attributions, plain_attributions, points
from pipeline.lm.forward import Suffix, proven, record
from pipeline.lm.load import load
from pipeline.lm.memory import row_bytes
from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch, target_probabilities
from pipeline.lm.prompts import Prompt, pack, tokenize
from tests.conftest import TINY_FACTS, TINY_MODEL
from tests.lm.families import EDITED, FAST_EDITED, random_model


def prompt_for(lm: LanguageModel, target: str = "Oslo") -> Prompt:
    text = "The capital of France is"
    return tokenize(lm.tokenizer, text, subject="France", target=target, add_bos=lm.add_bos)


def with_key(lm: LanguageModel, prompt: Prompt, block: int, factor: float) -> float:
    """P(target) with the key of `block` at the prompt's last token scaled."""

    def scaled(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        keys = args[0].clone()
        keys.reshape(-1, keys.shape[-1])[prompt.target_start - 1] *= factor
        return (keys,)

    handle = lm.arch.down_projs[block].register_forward_pre_hook(scaled)
    p = float(target_probabilities(lm, Batch.of([prompt], lm.device))[0])
    handle.remove()
    return p


def incompleteness(lm: LanguageModel, prompt: Prompt, steps: int) -> float:
    """Largest of all blocks' relative errors of sum Attr = P(1) - P(0)."""
    found = attributions(lm, prompt, range(lm.n_layers), steps)
    drops = [with_key(lm, prompt, block, 1.0) - with_key(lm, prompt, block, 0.0) for block in range(lm.n_layers)]
    return max(abs(float(found[block].double().sum()) / drop - 1) for block, drop in enumerate(drops))


@pytest.mark.parametrize("family", FAST_EDITED)
@pytest.mark.parametrize("target", ["Oslo", "of"])  # four tokens and one
def test_fast_equals_plain_in_float64(family: str, target: str) -> None:
    lm = random_model(family)
    prompt, blocks = prompt_for(lm, target), range(lm.n_layers)
    plain = plain_attributions(lm, prompt, blocks, 20)
    fast = attributions(lm, prompt, blocks, 20)
    for block in blocks:
        assert fast[block].shape == (lm.arch.key_size(block),)
        assert (fast[block] - plain[block]).norm() <= 1e-8 * plain[block].norm()


@pytest.mark.parametrize("family", FAST_EDITED)
def test_attributions_add_up_to_what_the_key_does(family: str) -> None:
    """Under ReLU, P has kinks, and no rule is as good there."""
    lm = random_model(family)
    bounds = {20: 0.05, 200: 0.005} if family == "opt" else {20: 0.01, 200: 0.001}
    for target in ("Oslo", "of"):
        for steps, bound in bounds.items():
            assert incompleteness(lm, prompt_for(lm, target), steps) <= bound


def test_they_add_up_in_a_trained_model() -> None:
    lm = proven(load(str(TINY_MODEL), dtype="float64"))
    for fact in read_facts("embedded", TINY_FACTS, 0)[:3]:
        prompt = tokenize(lm.tokenizer, fact.text, subject=fact.subject, target=fact.target_true, add_bos=lm.add_bos)
        assert incompleteness(lm, prompt, 20) <= 0.01
        assert incompleteness(lm, prompt, 200) <= 0.001


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_papers_rule_has_an_error_that_falls_as_one_over_the_steps(family: str) -> None:
    lm = random_model(family)
    prompt = prompt_for(lm)
    exact = torch.stack([*attributions(lm, prompt, range(lm.n_layers), 60).values()])
    errors = [
        (torch.stack([*attributions(lm, prompt, range(lm.n_layers), steps, "right").values()]) - exact).norm()
        for steps in (20, 40, 80)
    ]
    assert errors[0] > 0.01 * exact.norm()
    assert 1.8 < errors[0] / errors[1] < 2.2
    assert 1.8 < errors[1] / errors[2] < 2.2
    plain = plain_attributions(lm, prompt, [1], 20, "right")[1]
    assert (attributions(lm, prompt, [1], 20, "right")[1] - plain).norm() <= 1e-8 * plain.norm()


def test_points_integrate_what_they_are_for() -> None:
    assert sum(weight * a for a, weight in points(5, "right", 0.0, LARGE)) == pytest.approx(0.6)
    assert sum(weight * a for a, weight in points(5, "gauss", 0.0, LARGE)) == pytest.approx(0.5)
    for bend, width in ((0.0, 1e-3), (0.3, 0.01), (-2.0, 0.5)):
        found = points(30, "gauss", bend, width)
        assert all(0 < a < 1 for a, _ in found)
        # The slope of (a - bend) / sqrt((a - bend)^2 + width^2), what a norm makes of its way.
        slope = sum(w * width**2 / ((a - bend) ** 2 + width**2) ** 1.5 for a, w in found)
        ends = [(a - bend) / ((a - bend) ** 2 + width**2) ** 0.5 for a in (0.0, 1.0)]
        assert slope == pytest.approx(ends[1] - ends[0], rel=1e-3)


def test_batches_within_a_memory_give_the_same() -> None:
    lm = random_model("gpt2")
    prompt, blocks = prompt_for(lm), range(lm.n_layers)
    whole = attributions(lm, prompt, blocks, 20)
    suffix = Suffix.after(record(lm, pack([prompt.ids[:-1]])), prompt.reads)
    row = row_bytes(lm, suffix, len(prompt.reads), gradient=True)
    for rows in (1, 7, 33):  # a block's points in several batches, and several blocks in one
        parts = attributions(lm, prompt, blocks, 20, memory=rows * row)
        for block in blocks:
            assert (parts[block] - whole[block]).norm() <= 1e-10 * whole[block].norm()


@pytest.mark.parametrize("family", [family for family in EDITED if family not in FAST_EDITED])
def test_the_plain_path_serves_models_that_cannot_be_resumed(family: str) -> None:
    lm = random_model(family)
    prompt = prompt_for(lm)
    (found,) = plain_attributions(lm, prompt, [2], 20).values()
    drop = with_key(lm, prompt, 2, 1.0) - with_key(lm, prompt, 2, 0.0)
    assert float(found.sum()) == pytest.approx(drop, rel=0.01)
