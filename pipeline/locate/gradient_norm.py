"""The norm of the gradient of log p(target) in each down-projection's weight, in the clean run.

For W of block l, |d log p / dW| over all entries: how fast the weight that ROME changes moves the fact's
log-probability. Its square is the trace of the Fisher information of W as one observation shows it (Kirkpatrick et al.
2017, "Overcoming catastrophic forgetting in neural networks", who so weigh how much weights matter for a task). Of
log p and not of p: p' = p (log p)' only scales all layers of a fact alike.

With g_i the gradient in the output of the down-projection at token i and k_i its input, the gradient in W is the sum
over tokens of g_i k_i^T, and the square of its norm the sum over i and j of (g_i . g_j) (k_i . k_j): no gradient of the
size of a weight is made. Targets of several tokens are read at several tokens, and all count.
"""

from __future__ import annotations

import numpy as np

from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch
from pipeline.locate.gradients import gradients
from pipeline.locate.protocol import Case, Localizer, Values

NAME = "gradient_norm"


def locate(lm: LanguageModel, case: Case) -> Values:
    """The norm at each layer."""
    run = gradients(lm, Batch.of([case.true], lm.device))
    squares = []
    for gradient, keys in zip(run.gradients, run.keys, strict=True):
        g, k = gradient[0].double(), keys[0].double()  # (T, d), (T, d_ff)
        squares.append(float(((g @ g.T) * (k @ k.T)).sum()))
    return {NAME: np.sqrt(np.maximum(squares, 0))}  # rounding may leave a square a little below 0


LOCALIZER = Localizer(NAME, __name__, locate, of_weights=True)
