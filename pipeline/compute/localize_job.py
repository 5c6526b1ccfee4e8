"""The units of the localize stage: what cheaper localizers than causal tracing say of where a fact is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.compute.keys import common, key
from pipeline.compute.machine import loaded
from pipeline.compute.work import Unit
from pipeline.errors import UserError
from pipeline.facts import known
from pipeline.facts.fact import Fact
from pipeline.lm.memory import budget
from pipeline.lm.noise import NoiseTable
from pipeline.locate.protocol import Case, Localizer
from pipeline.tables import to_arrow

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

SCHEMA = pa.schema(
    [("fact_id", pa.large_string()), ("localizer", pa.large_string()), ("layer", pa.int64()), ("value", pa.float64())]
)


def case(lm: LanguageModel, params: Params, fact: Fact, sd: float, memory: int) -> Case:
    """A fact as localizers see it. sd: of the noise, in embedding units; memory: bytes that a batch may take."""
    samples = params.noise.samples
    return Case(
        true=known.fact_prompt(lm, fact),
        false=known.fact_prompt(lm, fact, fact.target_false),
        noise=NoiseTable(params.seed, fact.fact_id, sd, samples, lm.embedding_width),
        samples=samples,
        windows=params.trace.windows,
        steps=params.localize.gradients,
        memory=memory,
    )


@dataclass(frozen=True)
class LocalizeJob:
    """Values by layer, columns as of SCHEMA; a unit is one fact and localizer.

    Raises UserError, when its units are asked for, where a localizer needs down-projections that the model has not.
    """

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    sd: float
    localizers: tuple[Localizer, ...]
    step = "localize"
    noun = "localizations"

    def _depends(self, localizer: Localizer) -> dict[str, Any]:
        params = self.params
        if localizer.of_weights and not self.model["key_size"]:
            raise UserError(
                f"params.yaml: localize.methods holds {localizer.name}, which needs the last linear map of each MLP, "
                f"but an MLP of {params.model.name} is many experts and has no single one; take it out"
            )
        settings = {
            "noise": {"seed": params.seed, "sd": self.sd, "samples": params.noise.samples},
            "windows": params.trace.windows,
            "steps": params.localize.gradients,
        }
        used = {name: settings[name] for name in localizer.uses}
        return common(params, self.model, __name__, localizer.module) | {"localizer": localizer.name, "settings": used}

    def units(self) -> Sequence[Unit]:
        depends = {localizer.name: self._depends(localizer) for localizer in self.localizers}
        return [
            Unit(
                key(
                    **depends[localizer.name], step=self.step,
                    fact=[fact.fact_id, fact.prompt, fact.subject, fact.target_true, fact.target_false],
                ),
                f"{fact.fact_id} {localizer.name}",
                (fact, localizer),
            )
            for fact in self.facts
            for localizer in self.localizers
        ]  # fmt: skip

    def worker(self) -> Callable[[Unit], pa.Table]:
        lm = loaded(self.params, self.model)
        memory = budget(self.params.compute.memory_bytes, lm.device, gradient=True)
        last: dict[str, Case] = {}  # its prompts and noise serve all localizers of a fact

        def compute(unit: Unit) -> pa.Table:
            fact, localizer = unit.item
            if fact.fact_id not in last:
                last.clear()
                last[fact.fact_id] = case(lm, self.params, fact, self.sd, memory)
            values = localizer.locate(lm, last[fact.fact_id])
            frames = [
                pd.DataFrame({"fact_id": fact.fact_id, "localizer": name, "layer": np.arange(len(by)), "value": by})
                for name, by in values.items()
            ]
            return to_arrow(pd.concat(frames, ignore_index=True)).cast(SCHEMA)

        return compute
