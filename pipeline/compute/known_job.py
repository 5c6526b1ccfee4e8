"""The units of the facts stage: what the model knows of each fact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.compute.keys import common, key
from pipeline.compute.machine import loaded
from pipeline.compute.work import Unit
from pipeline.facts import known
from pipeline.facts.fact import Fact, Known
from pipeline.tables import to_arrow

if TYPE_CHECKING:
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class KnownJob:
    """What the model knows of each fact; a unit is a group of facts that are run together."""

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    step = "known"
    noun = "groups of facts"

    def units(self) -> Sequence[Unit]:
        settings = self.params.facts.known
        depends = common(self.params, self.model, __name__)
        within = settings.within_tokens if settings.rule == "within" else None
        units = []
        size = known.PACK if within is None else known.TEXTS
        for low in range(0, len(self.facts), size):
            group = self.facts[low : low + size]
            texts = [[fact.prompt, fact.subject, fact.target_true] for fact in group]
            unit_key = key(**depends, step=self.step, facts=texts, within=within)
            units.append(Unit(unit_key, f"facts {low} to {low + len(group) - 1}", (group, within)))
        return units

    def worker(self) -> Callable[[Unit], pa.Table]:
        lm = loaded(self.params, self.model)

        def compute(unit: Unit) -> pa.Table:
            group, within = unit.item
            return to_arrow(pd.DataFrame([asdict(entry) for entry in known.measure(lm, group, within)]))

        return compute

    @staticmethod
    def read(table: pa.Table) -> list[Known]:
        return [Known(**row) for row in table.to_pylist()]
