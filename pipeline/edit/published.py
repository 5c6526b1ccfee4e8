"""Where the papers' authors edit: the blocks of each method in GPT-2 XL and GPT-J, and the same relative depth in a
model of another number of blocks.

ROME: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 3 (layer 18 of 48, counted from 1)
and the settings published with the code (17 and 5, counted from 0). MEMIT: Meng et al. 2023, "Mass-Editing Memory in
a Transformer", and the settings published with it: blocks 13 to 17, and 3 to 8; here stands the block that a window of
as many is centred on. FT and FT+L: Meng et al. 2022, appendix on the baselines. KN: Dai et al. 2022, and Meng et al.
2022 too, seek neurons in all blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BLOCKS = {"gpt2": 48, "gptj": 28}  # of GPT-2 XL and GPT-J
LAYERS = {
    "rome": {"gpt2": 17, "gptj": 5},
    "memit": {"gpt2": 15, "gptj": 6},
    "ft": {"gpt2": 1, "gptj": 21},
    "ft_l": {"gpt2": 0, "gptj": 0},
}


@dataclass(frozen=True)
class Place:
    """Where a method edits: a layer, and keys of its section that are other than params.yaml has them."""

    layer: int
    settings: dict[str, Any] = field(default_factory=dict)


def place(method: str, family: str, n_layers: int) -> Place | None:
    """Where `method` is published to edit, as a place of a model of `n_layers` blocks; None where nothing is published.

    family: the model's `model_type`; GPT-J's layers are taken for its own family, GPT-2 XL's for all others.
    """
    if method == "kn":
        return Place(0, {"window": "all"})
    if method not in LAYERS:
        return None
    source = family if family in BLOCKS else "gpt2"
    depth = LAYERS[method][source] / (BLOCKS[source] - 1)
    return Place(round(depth * (n_layers - 1)))
