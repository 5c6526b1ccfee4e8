"""What a localizer is: from one fact to a value for each layer, the larger, the more the fact is said to be there.

Exact causal tracing (pipeline.locate.tracing) is what the others are held against; it has a stage and a table of its
own. A localizer is one file of this folder, which ends in its `Localizer`, and one entry of
pipeline/locate/localizers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fact as localizers see it, and what they are set to.

    true, false: its prompt followed by its object, and by the object that an edit would put there. noise: of its
    subject, tracing's own, with `samples` draws. windows: tracing's, in layers. steps: gradients between no key and
    the whole key, for each block. memory: bytes that a batch may take.
    """

    true: Prompt
    false: Prompt
    noise: NoiseTable
    samples: int
    windows: tuple[int, ...]
    steps: int
    memory: int


Values = Mapping[str, np.ndarray]  # name in tables to a value for each layer, (L,) float64


@dataclass(frozen=True)
class Localizer:
    """A way to say where a fact is. name: in params.yaml. module: the file that computes it.

    locate: its values for one fact; NaN where it has none to give. uses: the settings that they depend on, of noise,
    windows and steps. of_weights: whether it needs the MLPs' down-projections, which experts have not.
    """

    name: str
    module: str
    locate: Callable[[LanguageModel, Case], Values]
    uses: tuple[str, ...] = ()
    of_weights: bool = False
