"""The figures of a run, all of them, from its tables."""

import pandas as pd

from pipeline.report import collapse, figures, layers
from pipeline.report.localizers import of_tracing
from pipeline.report.plots import Plot
from pipeline.report.sources import Sources


def pictures(
    run: Sources,
    rewrite: pd.DataFrame,
    traced: pd.DataFrame,
    harm: pd.DataFrame,
    *,
    score: str,
    measure: str,
    example_fact: str,
    collapse_nats: float,
    confidence: float,
) -> list[Plot | None]:
    """Every figure that the report has of its own; None for one that has nothing to show.

    rewrite, traced and harm are the tables of `pipeline.analysis.scores` by layer and of `pipeline.analysis.collapse`;
    score and measure: what is plotted against each other. Raises UserError where `example_fact` was not traced.
    """
    return [
        figures.trace_by_layer(traced, confidence),
        figures.trace_heatmap(run.trace, run.facts, example_fact),
        figures.rewrite_by_layer(rewrite, confidence),
        figures.score_against_trace(run.scores, score, measure),
        figures.r2_bars(run.regressions, run.paper),
        collapse.collapse_by_layer_plot(harm, collapse_nats),
        layers.layers_plot(of_tracing(run.choices), confidence),
    ]
