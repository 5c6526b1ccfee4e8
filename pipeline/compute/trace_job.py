"""The units of the trace stage: causal traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.compute.keys import common, key, path
from pipeline.compute.machine import set_up
from pipeline.compute.work import Unit
from pipeline.facts import known
from pipeline.facts.fact import Fact
from pipeline.lm.memory import budget, halving, rows_within
from pipeline.lm.noise import NoiseTable
from pipeline.locate.tracing import FactTrace
from pipeline.tables import to_arrow

if TYPE_CHECKING:
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class TraceJob:
    """Causal traces; a unit is one fact, module and window."""

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    sd: float
    step = "trace"
    noun = "traces"

    def units(self) -> Sequence[Unit]:
        depends = common(self.params, self.model, __name__)
        depends |= {"seed": self.params.seed, "sd": self.sd, "samples": self.params.noise.samples}
        return [
            Unit(
                key(
                    **depends, step=self.step, module=module, window=window,
                    fact=[fact.fact_id, fact.prompt, fact.subject, fact.target_true],
                ),
                f"{fact.fact_id} {module} window {window}",
                (fact, module, window),
            )
            for fact in self.facts
            for module in self.params.trace.modules
            for window in self.params.trace.windows
        ]  # fmt: skip

    def worker(self) -> Callable[[Unit], pa.Table]:
        lm, params = (
            set_up(self.params, self.model["source"], fast=path(self.params, self.model) == "fast"),
            self.params,
        )
        memory = budget(params.compute.memory_bytes, lm.device, gradient=False)
        last: dict[str, FactTrace] = {}  # the two runs of a fact serve all its modules and windows

        def compute(unit: Unit) -> pa.Table:
            fact, module, window = unit.item
            if fact.fact_id not in last:
                last.clear()
                noise = NoiseTable(params.seed, fact.fact_id, self.sd, params.noise.samples, lm.embedding_width)
                last[fact.fact_id] = FactTrace(lm, known.fact_prompt(lm, fact), noise, params.noise.samples)
            traced = last[fact.fact_id]
            if path(params, self.model) == "plain":
                trace = traced.plain(module, window)
            else:

                def work(allowed: int) -> Any:
                    return traced.fast(module, window, rows_within(lm, allowed, traced.n_reads, gradient=False))

                trace = halving(work, memory)
            return to_arrow(traced.frame(fact.fact_id, module, window, trace))

        return compute
