"""KN, knowledge neurons (Dai et al. 2022, sections 3 and 4.2; a baseline of Meng et al. 2022): the entries of keys that
give most to the old object's probability, and whose columns of the down-projection get another object's embedding.

A neuron is entry i of block l's key whose attribution (pipeline.lm.attribution) at the prompt's last token exceeds
`threshold` times the largest in the window's blocks; with `refine`, at least that share of the prefixed prompts must
find it, and without, the bare prompt alone is asked, as Meng et al. do. For each neuron

    W[:, i] += factor * (e(false) - e(true))    error injection; the true object's neurons
    W[:, i] -= factor * e(true)                 fact erasure
    W[:, i] += factor * e(true)                 fact amplification

where e(object) is the row of the input embeddings of the object's first token as it continues the prompt. The paper's
objects are single tokens. Published code takes away the embedding of the model's own answer, which for a known fact is
the true object's, adds those of all tokens of a longer new object, once each, and erases by setting columns to 0, where
here erasure is the first half of the replacement. What a column adds has the sign of its key, which in gated MLPs
(Llama) is often negative; the method does not ask, and then moves the object the other way. For tracing reversal and
fact forcing nobody has defined it: under noise there is no object whose neurons to seek, and such edits are dropped. An
edit without neurons changes nothing. `delta_norm` is the Frobenius norm of the change of all W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.edit.protocol import (
    Edit,
    EditRequest,
    LowRank,
    Method,
    Resources,
    failed,
    usable,
)  # fmt: skip
from pipeline.errors import UserError
from pipeline.lm.attribution import attributions, plain_attributions
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.prompts import Prompt
from pipeline.settings.fields import (
    EmbeddingFactor,
    MaximumShare,
    NeuronWindow,
    PathRule,
    PathSteps,
    Sharing,
    choices,
)


@dataclass(frozen=True, kw_only=True)
class KnSettings:
    """The `kn` section of params.yaml for one problem; see there for what each value does."""

    steps: PathSteps
    rule: PathRule
    threshold: MaximumShare
    refine: Sharing
    factor: EmbeddingFactor
    window: NeuronWindow


@dataclass(frozen=True)
class Exchange:
    """What a problem asks of the neurons of the object that is sought: factors of e(target) and of e(baseline).

    sought: "target" or "baseline", the object whose probability is attributed.
    """

    sought: str
    target: int
    baseline: int = 0


EXCHANGES = {
    "error_injection": Exchange("baseline", target=1, baseline=-1),
    "fact_erasure": Exchange("target", target=-1),
    "fact_amplification": Exchange("target", target=1),
}


class Kn:
    """The method. window: how many blocks around the layer are searched, 0 for all, whichever the layer."""

    def __init__(self, settings: KnSettings, resources: Resources):
        self.settings, self.resources = settings, resources

    @property
    def window(self) -> int:
        return 0 if self.settings.window == "all" else self.settings.window

    def edit(
        self, lm: LanguageModel, request: EditRequest, layers: Sequence[int], memory: int | None = None
    ) -> list[Edit]:
        """One edit for each of `layers`, in their order. memory: bytes that a batch may take, None for no bound."""
        exchange = EXCHANGES.get(request.problem)
        if exchange is None:
            undefined = request.problem or "a request that names no problem"
            reason = f"dropped: KN is not defined for {undefined}, only for {choices((*EXCHANGES,))}"
            return [failed(layer, reason) for layer in layers]
        prompts = request.prompts if exchange.sought == "target" else request.baselines
        if not prompts or (exchange.baseline and not request.baselines):
            raise UserError(f"KN needs the baselines of a request for {request.problem}, and it has none")
        if self.settings.refine is None:
            prompts = prompts[:1]
        windows = {layer: self._blocks(lm, layer) for layer in layers}
        blocks = sorted({block for window in windows.values() for block in window})
        found = [self._attributions(lm, prompt, blocks, memory) for prompt in prompts]
        change = self.settings.factor * self._embeddings(lm, request, exchange)
        made: dict[range, Edit] = {}
        for layer, window in windows.items():
            if window not in made:
                made[window] = self._finish(layer, window, found, change)
        return [replace(made[windows[layer]], layer=layer) for layer in layers]

    def _blocks(self, lm: LanguageModel, layer: int) -> range:
        width = self.settings.window
        return range(lm.n_layers) if width == "all" else window_range(layer, width, lm.n_layers)

    def _attributions(
        self, lm: LanguageModel, prompt: Prompt, blocks: Sequence[int], memory: int | None
    ) -> dict[int, Tensor]:
        steps, rule = self.settings.steps, self.settings.rule
        if self.resources.path == "plain":
            return plain_attributions(lm, prompt, blocks, steps, rule)
        return attributions(lm, prompt, blocks, steps, rule, memory)

    def neurons(self, window: range, found: Sequence[dict[int, Tensor]]) -> dict[int, Tensor]:
        """Block to (d_ff,) bool, from the attributions of each prompt."""
        shared = {block: torch.zeros_like(found[0][block]) for block in window}
        for of_prompt in found:
            bound = self.settings.threshold * max(float(of_prompt[block].max()) for block in window)
            for block in window:
                shared[block] += of_prompt[block] > max(0.0, bound)
        least = 1 if self.settings.refine is None else self.settings.refine * len(found) - 1e-9
        return {block: counts >= least for block, counts in shared.items()}

    def _embeddings(self, lm: LanguageModel, request: EditRequest, exchange: Exchange) -> Tensor:
        """(d,): the signed sum of the objects' embeddings."""
        if lm.embedding_width != lm.arch.width:
            raise UserError(
                f"the embeddings of {lm.name} are {lm.embedding_width} wide and its blocks {lm.arch.width}; KN, which "
                "adds the ones to the others, needs a model where both are alike"
            )
        total = exchange.target * embedding(lm, request.prompts[0])
        return total + exchange.baseline * embedding(lm, request.baselines[0]) if exchange.baseline else total

    def _finish(self, layer: int, window: range, found: Sequence[dict[int, Tensor]], change: Tensor) -> Edit:
        if not all(usable(of_prompt[block]) for of_prompt in found for block in window):
            return failed(layer, "failed: an attribution is not a finite number")
        chosen = {block: which for block, which in self.neurons(window, found).items() if which.any()}
        updates = tuple(LowRank(block, change[:, None], which.to(change)[:, None]) for block, which in chosen.items())
        count = sum(int(which.sum()) for which in chosen.values())
        return Edit(layer, updates, float(change.double().norm()) * count**0.5, float("nan"), self.settings.steps)


def embedding(lm: LanguageModel, prompt: Prompt) -> Tensor:
    """(d,), float32 or float64: the input embedding of the target's first token; not of one that is a space alone, as
    some tokenizers have it before a word.
    """
    visible = [token for token in prompt.target_ids if lm.tokenizer.decode([token]).strip()]
    row = lm.arch.embedding.weight[(visible or prompt.target_ids)[0]].detach()
    return row.to(torch.float64 if row.dtype == torch.float64 else torch.float32)


METHOD = Method(name="kn", settings=KnSettings, editor=Kn, moments=False)
