"""What stage `robustness` traces again: the run's facts, each with one thing other than in the run.

Windows, modules and multiples of the noise are traces as stage `trace` makes them, so that those which it, or stage
`maps`, made already are the same units under the same keys. Corruptions and metrics, which are crossed with each other,
are those of `pipeline.compute.corrupt_job`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.compute import inputs
from pipeline.compute.corrupt_job import GAUSSIAN, CorruptJob
from pipeline.compute.trace_job import TraceJob
from pipeline.compute.work import Job
from pipeline.facts.fact import Fact
from pipeline.settings.fields import METRICS
from pipeline.tables import OWN

if TYPE_CHECKING:
    from pipeline.settings.params import Params

MODULE, WINDOW, NOISE, READ = "module", "window", "noise", "corruption and metric"
PROBABILITY = METRICS[0]  # that of stage `trace`
COLUMNS = ["variation", "value", "fact_id", "module", "window", "token_role", "layer", "effect", "fraction"]


@dataclass(frozen=True)
class Variant:
    """Traces of several variations, which `told` tells apart: of a table of the job's, the names of its rows, by
    variation and value.
    """

    job: Job
    told: Callable[[pd.DataFrame], Iterator[tuple[str, str, pd.DataFrame]]]


def variants(params: Params, model: dict[str, Any], facts: tuple[Fact, ...]) -> list[Variant]:
    """All that the section robustness asks for and the run itself has not; model: what data/model.json says.

    facts: those to trace. The files of the stages `model` and `facts` must be there.
    """
    asked, sd = params.robustness, inputs.sd(params)
    module, window = params.trace.modules[0], params.trace.windows[0]
    pairs = [(other, window) for other in asked.modules if other != module]
    pairs += [(module, width) for width in asked.windows if width != window]
    found = [Variant(TraceJob(params, model, facts, sd, tuple(pairs)), _by_pair(module))] if pairs else []
    for multiple in asked.multiples:
        noise = params.noise.model_copy(update={"multiple": multiple, "sd": None})
        other_sd = inputs.sd(params.model_copy(update={"noise": noise}))
        if other_sd != sd:
            job = TraceJob(params, model, facts, other_sd, ((module, window),))
            found.append(Variant(job, _by_noise(f"{multiple:g}")))
    read = tuple(name for name in asked.corruptions if name != GAUSSIAN or set(asked.metrics) != {PROBABILITY})
    if read:
        corrupted = CorruptJob(params, model, facts, inputs.known(), sd, read)
        found.append(Variant(corrupted, _by_metric(asked.metrics)))
    return found


def own(params: Params, facts: Sequence[Fact], trace: pd.DataFrame) -> pd.DataFrame:
    """The rows of data/trace.parquet that are of these facts, and of the run's first module and window."""
    rows = trace[(trace["module"] == params.trace.modules[0]) & (trace["window"] == params.trace.windows[0])]
    return rows[rows["fact_id"].isin([fact.fact_id for fact in facts])]


def assembled(own: pd.DataFrame, tables: Sequence[tuple[Variant, pa.Table]]) -> pd.DataFrame:
    """All traces of the variations and, first, of the run's own, columns COLUMNS; own: data/trace.parquet's rows."""
    parts = [(OWN, "", own)]
    for variant, table in tables:
        parts += variant.told(table.to_pandas())
    return pd.concat(
        [part.assign(variation=variation, value=value)[COLUMNS] for variation, value, part in parts],
        ignore_index=True,
    )


def _by_pair(module: str) -> Callable[[pd.DataFrame], Iterator[tuple[str, str, pd.DataFrame]]]:
    def told(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
        for (name, width), part in table.groupby(["module", "window"], sort=False):
            yield (MODULE, str(name), part) if name != module else (WINDOW, str(width), part)

    return told


def _by_noise(multiple: str) -> Callable[[pd.DataFrame], Iterator[tuple[str, str, pd.DataFrame]]]:
    def told(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
        yield NOISE, multiple, table

    return told


def _by_metric(metrics: Sequence[str]) -> Callable[[pd.DataFrame], Iterator[tuple[str, str, pd.DataFrame]]]:
    def told(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
        for (corruption, metric), part in table.groupby(["corruption", "metric"], sort=False):
            if metric in metrics and (corruption, metric) != (GAUSSIAN, PROBABILITY):
                yield READ, f"{corruption}, {metric}", part

    return told
