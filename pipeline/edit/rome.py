"""ROME (Meng et al. 2022, section 3.1): one rank-one edit of one block's MLP down-projection.

k* is the mean over context prefixes of the down-projection's input at the subject's last token; v* = v0 + delta is
optimised for equation 4 (pipeline.edit.objective, pipeline.edit.value, which says what k*, k and v0 are under noise);
and W' = W + (v* - W k) uT / (uT k), u = C^-1 k* (equation 2). k is the key of the bare prompt, as in the published
code, or k* itself with `key: mean` (Gupta et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from pipeline.edit.moments import Whiteners
from pipeline.edit.objective import reaches
from pipeline.edit.protocol import Edit, EditRequest, LowRank, Method, Resources, failed, usable
from pipeline.edit.value import MappedSite, Prepared, Site, plain_delta
from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel
from pipeline.settings.fields import ErasureLoss, LearningRate, NormFactor, Probability, Steps, StopLoss, Weight


@dataclass(frozen=True, kw_only=True)
class RomeSettings:
    """The `rome` section of params.yaml for one problem; see there for what each value does."""

    steps: Steps
    learning_rate: LearningRate
    kl_factor: Weight
    weight_decay: Weight
    clamp_norm_factor: NormFactor
    key: Annotated[Literal["prompt", "mean"], Field(description="prompt or mean")]
    leave_when: Probability
    stop_loss: StopLoss
    erasure_loss: ErasureLoss


class Rome:
    """The method: one editor for all layers of a model; C of a block is factored when it is first needed."""

    window = 1

    def __init__(self, settings: RomeSettings, resources: Resources):
        self.settings, self.resources = settings, resources
        self.whiteners = Whiteners(resources.moment, resources.ridge)

    def edit(
        self, lm: LanguageModel, request: EditRequest, layers: Sequence[int], memory: int | None = None
    ) -> list[Edit]:
        """One edit for each of `layers`, in their order. memory: bytes that a batch may take, None for all at once."""
        if self.resources.path == "plain":
            return [self._marked(lm, request, self._plain(lm, request, layer)) for layer in layers]
        found: dict[int, Edit] = {}
        prepared = Prepared(lm, request, self.settings.steps)
        for layer, delta, loss, steps in prepared.optimise_within(self.settings, sorted(set(layers)), memory):
            found[layer] = self._finish(layer, prepared.site(layer), delta, loss, steps)
        return [self._marked(lm, request, found[layer]) for layer in layers]

    def _marked(self, lm: LanguageModel, request: EditRequest, edit: Edit) -> Edit:
        """`edit`, which says whether it could reach the answer."""
        return replace(edit, acts=reaches(lm, request, edit.layer))

    def _plain(self, lm: LanguageModel, request: EditRequest, layer: int) -> Edit:
        site, delta, loss, steps = plain_delta(lm, request, self.settings, layer)
        return self._finish(layer, site, delta, loss, steps)

    def _finish(self, layer: int, site: Site, delta: Tensor, loss: float, steps: int) -> Edit:
        """Equation 2: the rank-one update that maps the key to v0 + delta."""
        try:
            whitener = self.whiteners.of(layer)
        except UserError as error:
            return failed(layer, f"failed: {error}")
        if not usable(delta) or loss != loss:
            return failed(layer, "failed: the loss is not a finite number")
        mean_key = site.keys.double().mean(0)
        u = whitener.solve(mean_key.to(whitener.factor.device)).to(mean_key.device)
        residual = delta.double()
        if self.settings.key == "mean":
            key = mean_key
            residual = residual + site.v0.double() - self._output(site, mean_key)
        else:
            key = site.keys[0].double()
        inner = u @ key
        left = residual / inner
        if not (usable(left) and usable(u)):
            return failed(layer, "failed: the update is not finite")
        cosine = float(inner / (u.norm() * key.norm()))
        update, length = LowRank(layer, left[:, None], u[:, None]), float(delta.double().norm())
        return Edit(layer, (update,), length, loss, steps, denominator=cosine)

    def _output(self, site: Site, key: Tensor) -> Tensor:
        """W key + b; `site` carries the map."""
        assert isinstance(site, MappedSite)
        return site.output(key)


METHOD = Method(name="rome", settings=RomeSettings, editor=Rome, moments=True)
