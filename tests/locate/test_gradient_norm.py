"""The norm of the gradient in a weight, against the gradient in that weight itself."""

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch, full_logits
from pipeline.locate.gradient_norm import locate
from pipeline.locate.protocol import Case
from tests.lm.families import EDITED, random_model
from tests.locate.cases import case_of


def by_autograd(lm: LanguageModel, case: Case) -> np.ndarray:
    """|d log p / dW| of each block, with all weights asking for gradients."""
    weights = [module.weight.requires_grad_() for module in lm.arch.down_projs]
    try:
        logs = full_logits(lm, Batch.of([case.true], lm.device)).log_softmax(-1)
        log_p = logs[0, list(case.true.reads), list(case.true.target_ids)].sum()
        return np.array([float(gradient.norm()) for gradient in torch.autograd.grad(log_p, weights)])
    finally:
        for weight in weights:
            weight.requires_grad_(False)


@pytest.mark.parametrize("family", EDITED)
@pytest.mark.parametrize("true", ["Oslo now", "of"])
def test_it_is_the_norm_of_the_weights_gradient(family: str, true: str) -> None:
    lm = random_model(family)
    case = case_of(lm, true)
    (found,) = locate(lm, case).values()
    assert found == pytest.approx(by_autograd(lm, case), rel=1e-8)
    assert np.ptp(found) > 0.01 * found.max()


def test_a_squared_norm_below_rounding_is_none() -> None:
    lm = random_model("gpt2")
    last = lm.arch.n_layers - 1
    (found,) = locate(lm, case_of(lm)).values()
    assert (found >= 0).all()
    assert found[last] > 0  # the last block is read at the last token


def test_experts_have_no_weight_to_look_at() -> None:
    lm = random_model("mixtral")
    with pytest.raises(UserError, match="no single down-projection"):
        _ = lm.arch.down_projs
