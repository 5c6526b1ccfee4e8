"""Direct logit attribution: against norms written out by hand, and the parts' sum against the logits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch, full_logits, outputs
from pipeline.locate.logit_attribution import held_norm, locate, locate_at_subject, parting
from tests.lm.families import CONFIGS, random_model
from tests.locate.cases import case_of


def by_hand(norm: Any, hidden: Tensor, added: Tensor) -> Tensor:
    """The norm of `added` with the scale that `hidden` gives it, by what is published of each kind of norm."""
    kind = type(norm).__name__
    if "LayerNorm" in kind:
        hidden, added = (x - x.mean(-1, keepdim=True) for x in (hidden, added))
    eps = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
    gain = 1 + norm.weight if kind.startswith("Gemma") else norm.weight
    return gain * added / (hidden.square().mean(-1, keepdim=True) + eps).sqrt()


def randomized(lm: LanguageModel) -> LanguageModel:
    """Its final norm with a gain, and a bias where it has one, that are not what they are at first."""
    for parameter in lm.arch.final_norm.parameters():
        parameter.data.normal_(0.5, 0.3, generator=torch.Generator().manual_seed(1))
    return lm


@pytest.fixture(params=CONFIGS)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return randomized(random_model(request.param))


def test_it_is_the_share_in_the_difference_of_logits(lm: LanguageModel) -> None:
    case = case_of(lm)
    true, false = case.true.target_ids[0], case.false.target_ids[0]
    head, arch = lm.arch.head.weight, lm.arch
    *mlps, hidden = outputs(lm, case.true, [*arch.mlp_ends, arch.blocks[-1]])
    for (found,), token in (
        (locate(lm, case).values(), case.true.target_start - 1),
        (locate_at_subject(lm, case).values(), case.true.last_subject),
    ):
        added = torch.stack([arch.mlp_to_residual(layer, out[token]) for layer, out in enumerate(mlps)])
        shares = by_hand(arch.final_norm, hidden[token], added) @ (head[true] - head[false])
        assert found == pytest.approx(shares.detach().numpy(), rel=1e-5, abs=1e-6 * float(shares.abs().max()))


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi", "gemma3_text", "granite"])
def test_embedding_attention_and_mlps_together_make_the_difference_of_logits(family: str) -> None:
    lm = randomized(random_model(family))
    case, arch = case_of(lm), lm.arch
    token, ids = case.true.target_start - 1, [case.true.target_ids[0], case.false.target_ids[0]]
    (found,) = locate(lm, case).values()
    *mlps, hidden = outputs(lm, case.true, [*arch.mlp_ends, arch.blocks[-1]])
    by_mlps = sum(arch.mlp_to_residual(layer, out[token]) for layer, out in enumerate(mlps))
    rest = held_norm(arch.final_norm, hidden[token], (hidden[token] - by_mlps)[None])[0]  # embedding and attention
    unread = arch.final_norm(torch.zeros_like(hidden[token]))  # the norm's bias, which no block adds
    direction = arch.head.weight[ids[0]] - arch.head.weight[ids[1]]
    bias = getattr(arch.head, "bias", None)
    offset = 0.0 if bias is None else float(bias[ids[0]] - bias[ids[1]])
    logits = full_logits(lm, Batch.of([case.true], lm.device))[0, token, ids]
    scale = 8.0 if family == "granite" else 1.0  # what it divides its logits by
    whole = float(found.sum()) + float((rest + unread) @ direction) + offset
    assert whole == pytest.approx(float(logits[0] - logits[1]) * scale, rel=1e-5)
    assert abs(float(rest @ direction)) > 1e-3 * abs(whole)  # so that the MLPs alone would not do


def test_objects_are_told_apart_where_they_part() -> None:
    lm = random_model("gpt2")
    case = case_of(lm, "Oslo now", "Oslo then")
    common = parting(case.true, case.false)
    assert common is not None
    assert common > 0
    (found,) = locate(lm, case).values()
    # The same prompt, written longer by what the two have in common.
    longer = [replace(prompt, target_start=prompt.target_start + common) for prompt in (case.true, case.false)]
    (expected,) = locate(lm, replace(case, true=longer[0], false=longer[1])).values()
    assert (found == expected).all()
    beginning = case_of(lm, "Oslo now", "Oslo")
    assert parting(beginning.true, beginning.false) is None
    assert np.isnan(locate(lm, beginning)["logit_attribution"]).all()


def test_a_norm_of_another_kind_is_refused() -> None:
    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**3

    hidden = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="Cube, is neither a layer norm nor an RMS norm"):
        held_norm(Cube(), hidden, hidden[None])
