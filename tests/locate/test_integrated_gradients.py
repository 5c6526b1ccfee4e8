"""Attribution by integrated gradients, summed by block: against a fine rule on the plain model."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch, full_logits
from pipeline.locate.integrated_gradients import locate
from pipeline.locate.protocol import Case
from tests.lm.families import EDITED, random_model
from tests.locate.cases import case_of

FINE = 100


def by_midpoints(lm: LanguageModel, case: Case, block: int) -> float:
    """Sum of the attributions above 0: FINE copies of the prompt, the key of each at another point of its way."""
    prompt, seen = case.true, {}
    factors = (torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE

    def scale(_module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        keys = args[0].reshape(FINE, len(prompt.ids), -1).clone()
        seen["key"] = keys[0, prompt.target_start - 1].clone()
        seen["put"] = (factors[:, None] * seen["key"]).requires_grad_()
        keys[:, prompt.target_start - 1] = seen["put"]
        return (keys.reshape(args[0].shape),)

    handle = lm.arch.down_projs[block].register_forward_pre_hook(scale)
    try:
        logs = full_logits(lm, Batch.of([prompt] * FINE, lm.device)).log_softmax(-1)
    finally:
        handle.remove()
    p = logs[:, list(prompt.reads), list(prompt.target_ids)].sum(-1).exp()
    (gradient,) = torch.autograd.grad(p.sum(), seen["put"])
    return float((seen["key"] * gradient.mean(0)).clamp_min(0).sum())


@pytest.mark.parametrize("family", EDITED)
def test_it_is_the_sum_of_what_speaks_for_the_object(family: str) -> None:
    """A norm after the MLP makes p steep near no key at all, and ReLU gives it kinks: neither rule is exact there."""
    lm = random_model(family)
    case = case_of(lm)
    (found,) = locate(lm, case).values()
    steep = any(lm.arch.mlp_norms) or family == "opt"
    for block in (0, lm.n_layers - 2):
        assert found[block] == pytest.approx(by_midpoints(lm, case, block), rel=0.2 if steep else 5e-3)
    assert (found >= 0).all()
    assert np.ptp(found) > 0.01 * found.max()


def test_a_memory_that_holds_one_row_gives_the_same() -> None:
    lm = random_model("llama")
    (whole,) = locate(lm, case_of(lm, steps=5)).values()
    (parts,) = locate(lm, case_of(lm, steps=5, memory=1)).values()
    assert parts == pytest.approx(whole, rel=1e-10)
