"""The units of the stage maps: traces of all modules, and those of the severed model.

A trace that stage `trace` asks for as well is the same unit under the same key, so neither stage repeats the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.compute.keys import common, key, path
from pipeline.compute.machine import set_up
from pipeline.compute.trace_job import TraceJob
from pipeline.compute.work import Unit
from pipeline.facts import known
from pipeline.facts.fact import Fact
from pipeline.lm.memory import budget, halving, rows_within
from pipeline.lm.noise import NoiseTable
from pipeline.locate.severed import SeveredTrace
from pipeline.tables import NOT_SEVERED, to_arrow

if TYPE_CHECKING:
    from pipeline.settings.params import Params

COLUMNS = [
    "fact_id", "module", "window", "severed", "token_index", "token", "token_role", "layer", "p_clean", "p_corrupt",
    "p_restored", "effect",
]  # fmt: skip


@dataclass(frozen=True)
class MapsJob(TraceJob):
    """Causal traces for the maps: hidden states one block each, MLP and attention over each of maps.windows."""

    def units(self) -> Sequence[Unit]:
        asked = ((("hidden",), (1,)), (("mlp", "attn"), self.params.maps.windows))
        units = [unit for modules, windows in asked for unit in self._traces(modules, windows)]
        place = {fact.fact_id: i for i, fact in enumerate(self.facts)}
        return sorted(units, key=lambda unit: place[unit.item[0].fact_id])  # a worker keeps a fact's runs for the next

    def _traces(self, modules: tuple[str, ...], windows: tuple[int, ...]) -> Sequence[Unit]:
        """The units of stage `trace`, had it been asked for these."""
        trace = self.params.trace.model_copy(update={"modules": modules, "windows": windows})
        settings = self.params.model_copy(update={"trace": trace})
        return TraceJob(settings, self.model, self.facts, self.sd).units()


@dataclass(frozen=True)
class SeveredJob(TraceJob):
    """Traces of hidden states in the severed model; a unit is one fact and severed module."""

    step = "severed"
    noun = "severed traces"

    def units(self) -> Sequence[Unit]:
        depends = common(self.params, self.model, __name__)
        depends |= {"seed": self.params.seed, "sd": self.sd, "samples": self.params.noise.samples}
        return [
            Unit(
                key(
                    **depends, step=self.step, severed=severed,
                    fact=[fact.fact_id, fact.prompt, fact.subject, fact.target_true],
                ),
                f"{fact.fact_id} without {severed}",
                (fact, severed),
            )
            for fact in self.facts
            for severed in self.params.maps.severed
        ]  # fmt: skip

    def worker(self) -> Callable[[Unit], pa.Table]:
        params, plain = self.params, path(self.params, self.model) == "plain"
        lm = set_up(params, self.model["source"], fast=not plain)
        memory = budget(params.compute.memory_bytes, lm.device, gradient=False)

        def compute(unit: Unit) -> pa.Table:
            fact, severed = unit.item
            noise = NoiseTable(params.seed, fact.fact_id, self.sd, params.noise.samples, lm.embedding_width)
            traced = SeveredTrace(lm, known.fact_prompt(lm, fact), noise, params.noise.samples, severed)

            def work(allowed: int) -> Any:
                return traced.fast("hidden", 1, rows_within(lm, allowed, traced.n_reads, gradient=False))

            trace = traced.plain("hidden", 1) if plain else halving(work, memory)
            return to_arrow(traced.frame(fact.fact_id, "hidden", 1, trace).assign(severed=severed))

        return compute


def jobs(params: Params, model: dict[str, Any], facts: tuple[Fact, ...], sd: float) -> list[TraceJob]:
    """All that the stage computes: for the first maps.count of the run's `facts`, each job that has units."""
    chosen = facts[: params.maps.count]
    found: list[TraceJob] = [MapsJob(params, model, chosen, sd)]
    return found + ([SeveredJob(params, model, chosen, sd)] if params.maps.severed else [])


def assembled(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """data/maps.parquet out of the jobs' tables; traces without severing have "none" there."""
    frames = [table.to_pandas() for table in tables]
    whole = [frame if "severed" in frame else frame.assign(severed=NOT_SEVERED) for frame in frames]
    return pd.concat(whole, ignore_index=True)[COLUMNS]
