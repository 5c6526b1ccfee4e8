"""The units of the trace stage: causal traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.compute.keys import common, key, path
from pipeline.compute.machine import loaded
from pipeline.compute.work import Unit
from pipeline.facts import known
from pipeline.facts.fact import Fact
from pipeline.lm.memory import budget, halving, rows_within
from pipeline.lm.noise import NoiseTable
from pipeline.locate.tracing import FactTrace
from pipeline.tables import to_arrow

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.lm.prompts import Prompt
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class TraceJob:
    """Causal traces; a unit is one fact, module and window.

    pairs: the modules and windows, in their order; None for the run's own.
    """

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    sd: float
    pairs: tuple[tuple[str, int], ...] | None = None
    step = "trace"
    noun = "traces"

    def units(self) -> Sequence[Unit]:
        depends = common(self.params, self.model, type(self).__module__)
        depends |= {"seed": self.params.seed, "sd": self.sd, "samples": self.params.noise.samples}
        return [
            Unit(
                key(
                    **depends, **what, step=self.step,
                    fact=[fact.fact_id, fact.prompt, fact.subject, fact.target_true],
                ),
                f"{fact.fact_id} {label}",
                (fact, *what.values()),
            )
            for fact in self.facts  # outermost: a worker keeps a fact's runs for the next unit
            for label, what in self._variants()
        ]  # fmt: skip

    def _variants(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is traced of each fact: in words, and what a unit's key and its item hold of it."""
        trace = self.params.trace
        for module, window in product(trace.modules, trace.windows) if self.pairs is None else self.pairs:
            yield f"{module} window {window}", {"module": module, "window": window}

    def worker(self) -> Callable[[Unit], pa.Table]:
        params, plain = self.params, path(self.params, self.model) == "plain"
        lm = loaded(params, self.model)
        memory = budget(params.compute.memory_bytes, lm.device, gradient=False)
        trace_of = self._tracer(lm)

        def compute(unit: Unit) -> pa.Table:
            traced, module, window, told = trace_of(*unit.item)

            def work(allowed: int) -> Any:
                return traced.fast(module, window, rows_within(lm, allowed, traced.n_reads, gradient=False))

            trace = traced.plain(module, window) if plain else halving(work, memory)
            return to_arrow(traced.frame(unit.item[0].fact_id, module, window, trace).assign(**told))

        return compute

    def _tracer(self, lm: LanguageModel) -> Callable[..., tuple[FactTrace, str, int, dict[str, Any]]]:
        """From a unit's item to what is traced, the module and window, and further columns."""
        last: dict[str, FactTrace] = {}  # the two runs of a fact serve all its modules and windows

        def trace_of(fact: Fact, module: str, window: int) -> tuple[FactTrace, str, int, dict[str, Any]]:
            if fact.fact_id not in last:
                last.clear()
                last[fact.fact_id] = FactTrace(lm, *self._noised(lm, fact))
            return last[fact.fact_id], module, window, {}

        return trace_of

    def _noised(self, lm: LanguageModel, fact: Fact) -> tuple[Prompt, NoiseTable, int]:
        """The fact's prompt, its noise, and the number of draws."""
        samples = self.params.noise.samples
        noise = NoiseTable(self.params.seed, fact.fact_id, self.sd, samples, lm.embedding_width)
        return known.fact_prompt(lm, fact), noise, samples
