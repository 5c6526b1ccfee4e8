"""The figures of a run, all of them, from its tables."""

from collections.abc import Mapping

import pandas as pd

from pipeline.report import by_layer, collapse, figures, layers
from pipeline.report.localizers import of_tracing
from pipeline.report.plots import Plot
from pipeline.report.sources import Sources


def pictures(
    run: Sources,
    tables: Mapping[str, pd.DataFrame],
    harm: pd.DataFrame,
    *,
    score: str,
    measure: str,
    example_fact: str,
    collapse_nats: float,
    confidence: float,
) -> list[Plot | None]:
    """Every figure that the report has of its own; None for one that has nothing to show.

    tables and harm are those of `pipeline.analysis.by_layer` and of `pipeline.analysis.collapse`; score and measure:
    what is plotted against each other. Raises UserError where `example_fact` was not traced.
    """
    return [
        figures.trace_by_layer(tables["trace_by_layer"], confidence),
        by_layer.trace_peaks(tables["trace_peaks"]),
        figures.trace_heatmap(run.trace, run.facts, example_fact),
        figures.rewrite_by_layer(tables["rewrite_by_layer"], confidence),
        by_layer.scores_by_layer(tables["scores_by_layer"], confidence),
        figures.score_against_trace(run.scores, score, measure),
        by_layer.correlation_by_layer(tables["correlation_by_layer"], score, measure),
        figures.r2_bars(run.regressions, run.paper),
        collapse.collapse_by_layer_plot(harm, collapse_nats),
        layers.layers_plot(of_tracing(run.choices), confidence),
    ]
