"""What the neurons of each MLP give to p(target), by integrated gradients (Dai et al. 2022, section 3.2).

`pipeline.lm.attribution` says what each entry of a block's key at the prompt's last token gives; a fact's value at a
layer is the sum of the attributions above 0. These are the entries that knowledge neurons are chosen among, by a share
of the largest. The sum of all attributions would be what p loses without the whole key, in which neurons that speak
against the object hide those that speak for it.
"""

from __future__ import annotations

import numpy as np

from pipeline.lm.attribution import attributions, plain_attributions
from pipeline.lm.memory import halving
from pipeline.lm.model import LanguageModel
from pipeline.locate.protocol import Case, Localizer, Values

NAME = "integrated_gradients"


def locate(lm: LanguageModel, case: Case) -> Values:
    """The sum at each layer: all layers in one resumed forward, or one after the other where the model has none."""
    blocks = range(lm.n_layers)
    if lm.fast:
        found = halving(lambda memory: attributions(lm, case.true, blocks, case.steps, memory=memory), case.memory)
    else:
        found = plain_attributions(lm, case.true, blocks, case.steps)
    return {NAME: np.array([float(found[block].double().clamp_min(0).sum()) for block in blocks])}


LOCALIZER = Localizer(NAME, __name__, locate, uses=("steps",), of_weights=True)
