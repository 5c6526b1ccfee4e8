"""The units of the stage robustness under other corruptions than noise, and by other metrics than a probability.

A unit is one fact and corruption, in the run's own module and window; all metrics are read off the same pass. The
noise of gaussian is tracing's own, draw for draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.compute.keys import common, key, path
from pipeline.compute.machine import loaded
from pipeline.compute.work import Unit
from pipeline.facts.fact import Fact
from pipeline.facts.known import fact_prompt
from pipeline.facts.partners import candidates, partner
from pipeline.lm.memory import budget, halving, rows_within
from pipeline.lm.noise import NoiseTable
from pipeline.locate.corruptions import CorruptedTrace, Untouched, Zeroing
from pipeline.settings.fields import CORRUPTIONS
from pipeline.tables import to_arrow

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

GAUSSIAN, ZERO, REPLACE = CORRUPTIONS
SCHEMA = pa.schema(
    [(name, pa.large_string()) for name in ("fact_id", "corruption", "metric", "partner", "module")]
    + [("window", pa.int64()), ("token_index", pa.int64()), ("token", pa.large_string())]
    + [("token_role", pa.large_string()), ("layer", pa.int64())]
    + [(name, pa.float64()) for name in ("clean", "corrupt", "restored", "effect", "fraction")]
)


@dataclass(frozen=True)
class CorruptJob:
    """Causal traces by corruption and metric, columns as of SCHEMA; none where no subject can stand in.

    known: the facts among whose subjects one is sought. sd: of gaussian's noise, in embedding units.
    """

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    known: tuple[Fact, ...]
    sd: float
    corruptions: tuple[str, ...]
    step = "corrupt"
    noun = "traces"

    def units(self) -> Sequence[Unit]:
        params = self.params
        depends = common(params, self.model, __name__)
        depends |= {"step": self.step, "module": params.trace.modules[0], "window": params.trace.windows[0]}
        units = []
        for fact in self.facts:
            others = candidates(fact, self.known, params.seed)
            texts = [fact.fact_id, fact.prompt, fact.subject, fact.target_true, fact.target_false]
            for corruption in self.corruptions:
                used: dict[str, Any] = {}
                if corruption == GAUSSIAN:
                    used = {"seed": params.seed, "sd": self.sd, "samples": params.noise.samples}
                elif corruption == REPLACE:
                    used = {"others": [[other.fact_id, other.subject, other.target_true] for other in others]}
                units.append(
                    Unit(
                        key(**depends, corruption=corruption, fact=texts, used=used),
                        f"{fact.fact_id} {corruption}",
                        (fact, corruption, others if corruption == REPLACE else ()),
                    )
                )
        return units

    def worker(self) -> Callable[[Unit], pa.Table]:
        params, plain = self.params, path(self.params, self.model) == "plain"
        lm = loaded(params, self.model)
        memory = budget(params.compute.memory_bytes, lm.device, gradient=False)
        module, window = params.trace.modules[0], params.trace.windows[0]

        def compute(unit: Unit) -> pa.Table:
            fact, corruption, others = unit.item
            found = self._traced(lm, fact, corruption, others)
            if found is None:
                return SCHEMA.empty_table()
            traced, who = found

            def work(allowed: int) -> Any:
                return traced.all_fast(module, window, rows_within(lm, allowed, traced.n_reads, gradient=False))

            traces = traced.all_plain(module, window) if plain else halving(work, memory)
            frames = [
                traced.frame(fact.fact_id, module, window, trace).assign(metric=metric)
                for metric, trace in traces.items()
            ]
            names = {"p_clean": "clean", "p_corrupt": "corrupt", "p_restored": "restored"}
            whole = pd.concat(frames, ignore_index=True).rename(columns=names)
            return to_arrow(whole.assign(corruption=corruption, partner=who)[SCHEMA.names]).cast(SCHEMA)

        return compute

    def _traced(
        self, lm: LanguageModel, fact: Fact, corruption: str, others: Sequence[Fact]
    ) -> tuple[CorruptedTrace, str] | None:
        """What is traced, and the id of the fact whose subject stands in, "" where tokens stay; None for none."""
        true, samples = fact_prompt(lm, fact), self.params.noise.samples
        if corruption == REPLACE:
            found = partner(lm, fact, others)
            if found is None:
                return None
            other, prompt = found
            answer = fact_prompt(lm, fact, other.target_true)
            return CorruptedTrace(lm, true, answer, Untouched(lm), 1, prompt), other.fact_id
        false = fact_prompt(lm, fact, fact.target_false)
        if corruption == ZERO:
            return CorruptedTrace(lm, true, false, Zeroing(lm), 1), ""
        noise = NoiseTable(self.params.seed, fact.fact_id, self.sd, samples, lm.embedding_width)
        return CorruptedTrace(lm, true, false, noise, samples), ""
