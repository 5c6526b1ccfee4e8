"""Attribution patching: causal tracing to first order, all tokens and layers by one backward pass (Nanda 2023,
"Attribution patching: activation patching at industrial scale"; Syed, Rager and Conmy 2023).

With m the output of the MLP of block l at token t and p the target's probability in the corrupted run,

    effect(t, l) ~ mean over noise samples of  dp/dm . (m in the clean run - m in the corrupted run),

the samples being those of tracing. Each sample has its own gradient, so that nothing but the curvature of p between
the two values of m stands between this and tracing with a window of one layer. A fact's value at a layer is its largest
effect over tokens, as for tracing's `effect`.

For a wider window the effects of its layers are added up. That is not the slope of restoring all of them at once: there
each MLP is held at its clean output, and here what a lower one changes runs on through the higher ones at the same
token, as if none of them were held, and is counted again with theirs.

Kramar et al. 2024 ("AtP*") mend two failures. Where attention is saturated they compute its probabilities anew for a
patched query or key. Only MLP outputs are patched here, whose effect on attention further up is left to the gradient
by AtP* too. Their cure for effects that cancel (GradDrop) takes a backward pass for each layer, and so is not cheap; it
is not done.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.lm.memory import halving
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.plain import Batch, outputs
from pipeline.locate.gradients import copies_within, gradients
from pipeline.locate.protocol import Case, Localizer, Values

NAME = "attribution_patching"


def effects(lm: LanguageModel, case: Case) -> np.ndarray:
    """First-order indirect effects of restoring one MLP's output at one token, (T, L), in units of probability.

    T counts the prompt's tokens, without the target's. Before the subject the runs do not differ: 0.
    """
    prompt = case.true
    assert prompt.subject is not None
    start = prompt.subject[0]
    clean = torch.stack(outputs(lm, prompt, lm.arch.mlp_ends)).to(lm.device)  # (L, T, d), the target's tokens too
    rows = [case.noise.rows(prompt, draw) for draw in range(case.samples)]
    table = case.noise.table

    def work(memory: int) -> np.ndarray:
        total = torch.zeros(clean.shape[:2], dtype=torch.float64)
        size = copies_within(lm, len(prompt.ids), memory)
        for low in range(0, case.samples, size):
            part = rows[low : low + size]
            batch = Batch.of([prompt] * len(part), lm.device)
            run = gradients(lm, batch, batch.noise(table, part))
            for layer, (corrupt, gradient) in enumerate(zip(run.outputs, run.gradients, strict=True)):
                change = clean[layer].double() - corrupt.double()  # (B, T, d)
                total[layer] += (run.log_p.exp() @ (gradient.double() * change).sum(-1)).cpu()
        total[:, :start] = 0  # but for rounding
        return (total.T[: prompt.target_start] / case.samples).numpy()

    return halving(work, case.memory)


def windowed(effect: np.ndarray, window: int) -> np.ndarray:
    """Effects (T, L) added up over the window around each layer, cut off at the model's ends as tracing's is."""
    n_layers = effect.shape[1]
    return np.stack([effect[:, window_range(layer, window, n_layers)].sum(1) for layer in range(n_layers)], 1)


def locate(lm: LanguageModel, case: Case) -> Values:
    """For each of tracing's windows, the largest effect over the tokens from the subject on, by layer."""
    assert case.true.subject is not None
    effect = effects(lm, case)[case.true.subject[0] :]
    return {f"{NAME}_w{window}": windowed(effect, window).max(0) for window in case.windows}


LOCALIZER = Localizer(NAME, __name__, locate, uses=("noise", "windows"))
