"""Stage `regressions`: data/scores.parquet to reports/regressions.csv and reports/layers.csv."""

from pathlib import Path

from pipeline.analysis.layers import layer_table, traces
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.regression import Design, regression_table
from pipeline.settings.params import Params
from pipeline.tables import SCORES, read, write_csv
from stages._run import run_stage


def main(params: Params) -> None:
    """Run every regression that params names, with intervals and tests, and compare layers to edit at."""
    settings = params.regressions
    design = Design(
        keep_null_layers=settings.null_layers == "keep",
        folds=settings.folds,
        plan=Resampling(**settings.resampling, seed=params.seed),
    )
    scores = read(Path("data/scores.parquet"), SCORES)
    table = regression_table(scores, settings.scores, settings.trace_measures, design)
    localizers = traces(scores, settings.trace_measures)
    layers = layer_table(scores, settings.scores, localizers, design.plan, keep_null_layers=design.keep_null_layers)
    write_csv(table, Path("reports/regressions.csv"))
    write_csv(layers, Path("reports/layers.csv"))


if __name__ == "__main__":
    run_stage("regressions", main)
