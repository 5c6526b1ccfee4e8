"""What each MLP adds to the logit of the true object over that of the false one, read off the residual stream: direct
logit attribution (Elhage et al. 2021, "A mathematical framework for transformer circuits"; Wang et al. 2022).

The residual stream is a sum, and the final norm, once its scale is held at what it is, a linear map M. So the MLP of
block l, which adds m_l, puts (M m_l) . (u_true - u_false) on the difference of the two logits, u being the rows of the
unembedding, before what a family does with its logits in the end (a scale, a soft cap). It is the logit lens
(nostalgebraist 2020) of one summand. What m_l does by way of blocks above is not in it.

`logit_attribution` looks where the objects part: at the prompt's last token, or, where both begin with the same tokens,
after those. `logit_attribution_subject` looks at the subject's last token, where tracing finds the early site and
nothing is read: whether the MLPs there already write the object (Geva et al. 2023, section 4). An object that is the
beginning of the other has no token to be told apart by: NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import outputs
from pipeline.lm.prompts import Prompt
from pipeline.locate.protocol import Case, Localizer, Values

NAME = "logit_attribution"
SUBJECT = "logit_attribution_subject"
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}  # many norms compute in float32 whatever they are given


def parting(true: Prompt, false: Prompt) -> int | None:
    """How many tokens the two objects have in common at their beginning; None where one is the whole beginning."""
    for i, (one, other) in enumerate(zip(true.target_ids, false.target_ids, strict=False)):
        if one != other:
            return i
    return None


@torch.no_grad()
def held_norm(norm: Any, hidden: Tensor, added: Tensor) -> Tensor:
    """The final norm of `added` (n, d) with its scale held at what it is for `hidden` (d,), less its bias; (n, d).

    What kind of norm it is, its gain and its bias are told from what it does. Raises UserError where it is neither a
    layer norm nor an RMS norm.
    """
    sign = torch.ones_like(hidden)
    sign[1::2] = -1  # of mean 0 and mean square 1
    bias, by_sign, by_shifted, whole = (
        norm(x).to(hidden.device).double() for x in (torch.zeros_like(hidden), sign, sign + 1, hidden)
    )
    gain, shifted, whole = (by_sign - bias) * sign.double(), by_shifted - bias, whole - bias
    bound = _TOLERANCE.get(hidden.dtype, 3e-2)
    centered = bool((shifted - gain * sign.double()).norm() <= bound * 10 * gain.norm())

    def turned(x: Tensor) -> Tensor:
        x = x.double()
        return gain * (x - x.mean(-1, keepdim=True) if centered else x)

    own = turned(hidden)
    scale = (whole @ own) / (own @ own)
    if (whole - scale * own).norm() > bound * whole.norm():
        raise UserError(
            f"the model's final norm, {type(norm).__name__}, is neither a layer norm nor an RMS norm, so that no MLP "
            f"has a share of the logits; take {NAME} and {SUBJECT} out of localize.methods"
        )
    return scale * turned(added)


@torch.no_grad()
def shares(lm: LanguageModel, prompt: Prompt, token: int, ids: tuple[int, int]) -> np.ndarray:
    """What each MLP's output at a token adds to the logit of ids[0] over that of ids[1], (L,)."""
    arch = lm.arch
    if not arch.mlp_adds:
        raise UserError(
            f"{type(arch.model).__name__} norms what its blocks add up, so that no MLP has a share of the logits; take "
            f"{NAME} and {SUBJECT} out of localize.methods"
        )
    found = [each[token].to(lm.device) for each in outputs(lm, prompt, [*arch.mlp_ends, arch.blocks[-1]])]
    *mlps, hidden = found
    added = torch.stack([arch.mlp_to_residual(layer, output) for layer, output in enumerate(mlps)])
    normed = held_norm(arch.final_norm, hidden, added).to(hidden.dtype)
    logits = arch.head(torch.cat([normed, torch.zeros_like(normed[:1])])).double()  # the last row is the head's bias
    difference = logits[:, ids[0]] - logits[:, ids[1]]
    return (difference[:-1] - difference[-1]).cpu().numpy()


def _at(lm: LanguageModel, case: Case, *, subject: bool) -> np.ndarray:
    common = parting(case.true, case.false)
    if common is None:
        return np.full(lm.n_layers, np.nan)
    token = case.true.last_subject if subject else case.true.target_start - 1 + common
    return shares(lm, case.true, token, (case.true.target_ids[common], case.false.target_ids[common]))


def locate(lm: LanguageModel, case: Case) -> Values:
    """The shares of the MLPs where the object is read."""
    return {NAME: _at(lm, case, subject=False)}


def locate_at_subject(lm: LanguageModel, case: Case) -> Values:
    """The shares that the MLPs would have at the subject's last token."""
    return {SUBJECT: _at(lm, case, subject=True)}


LOCALIZER = Localizer(NAME, __name__, locate)
LOCALIZER_AT_SUBJECT = Localizer(SUBJECT, __name__, locate_at_subject)
