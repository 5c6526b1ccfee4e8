"""Second moments: streamed equals whole, all blocks in one pass equals one block at a time, C x = k is solved."""

import pytest
import torch

from pipeline.edit.moments import SecondMoment, Whitener, condition_number, second_moments
from pipeline.errors import UserError
from tests.lm.families import random_model


def test_streamed_equals_whole() -> None:
    keys = torch.randn(500, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment(12, torch.float64)
    for part in keys.split(37):
        moment.add(part)
    assert torch.allclose(moment.mean(), keys.T @ keys / 500, rtol=1e-13, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_one_pass_equals_a_pass_a_block(family: str) -> None:
    lm = random_model(family)
    batches = list(torch.randint(5, 200, (12, 9), generator=torch.Generator().manual_seed(1)).split(5))
    together = second_moments(lm, batches, range(lm.n_layers))
    for layer in range(lm.n_layers):
        keys: list[torch.Tensor] = []
        hook = lm.arch.down_projs[layer].register_forward_pre_hook(lambda _m, args, keys=keys: keys.append(args[0]))
        lm.model(input_ids=torch.cat(batches))
        hook.remove()
        flat = keys[0].reshape(-1, lm.arch.key_size(layer))
        assert len(flat) == 12 * 9
        assert torch.allclose(together[layer], flat.T @ flat / len(flat), rtol=1e-10, atol=1e-13)


def test_solving() -> None:
    root = torch.randn(40, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    moment = root.T @ root / 40
    keys = torch.randn(3, 12, dtype=torch.float64)
    assert torch.allclose(Whitener(moment).solve(keys) @ moment, keys, atol=1e-10)
    ridged = moment + 0.1 * moment.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    assert torch.allclose(Whitener(moment, 0.1).solve(keys) @ ridged, keys, atol=1e-10)


def test_a_singular_moment_is_refused_unless_a_ridge_is_named() -> None:
    moment = torch.ones(4, 4)
    assert condition_number(moment) == float("inf")
    with pytest.raises(UserError, match=r"statistics\.ridge"):
        Whitener(moment)
    assert torch.isfinite(Whitener(moment, 0.01).solve(torch.ones(4))).all()


def test_condition_number() -> None:
    assert condition_number(torch.diag(torch.tensor([1.0, 4.0, 10.0]))) == pytest.approx(10)
