"""The units of the stage maps: traces of all modules, and those of the severed model.

A trace that stage `trace` asks for as well is the same unit under the same key, so neither stage repeats the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.compute.trace_job import TraceJob
from pipeline.facts.fact import Fact
from pipeline.locate.severed import SeveredTrace
from pipeline.locate.tracing import FactTrace
from pipeline.tables import NOT_SEVERED

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

COLUMNS = [
    "fact_id", "module", "window", "severed", "token_index", "token", "token_role", "layer", "p_clean", "p_corrupt",
    "p_restored", "effect",
]  # fmt: skip


@dataclass(frozen=True)
class SeveredJob(TraceJob):
    """Traces of hidden states in the severed model; a unit is one fact and severed module."""

    step = "severed"
    noun = "severed traces"

    def _variants(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for severed in self.params.maps.severed:
            yield f"without {severed}", {"severed": severed}

    def _tracer(self, lm: LanguageModel) -> Callable[..., tuple[FactTrace, str, int, dict[str, Any]]]:
        def trace_of(fact: Fact, severed: str) -> tuple[FactTrace, str, int, dict[str, Any]]:
            return SeveredTrace(lm, *self._noised(lm, fact), severed), "hidden", 1, {"severed": severed}

        return trace_of


def jobs(params: Params, model: dict[str, Any], facts: tuple[Fact, ...], sd: float) -> list[TraceJob]:
    """All that the stage computes: for the first maps.count of the run's `facts`, each job that has units."""
    chosen = facts[: params.maps.count]
    pairs = ("hidden", 1), *product(("mlp", "attn"), params.maps.windows)
    found = [TraceJob(params, model, chosen, sd, pairs)]
    return found + ([SeveredJob(params, model, chosen, sd)] if params.maps.severed else [])


def assembled(tables: Iterable[pa.Table]) -> pd.DataFrame:
    """data/maps.parquet out of the jobs' tables; traces without severing have "none" there."""
    frames = [table.to_pandas() for table in tables]
    whole = [frame if "severed" in frame else frame.assign(severed=NOT_SEVERED) for frame in frames]
    return pd.concat(whole, ignore_index=True)[COLUMNS]
