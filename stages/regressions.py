"""Stage `regressions`: data/scores.parquet to reports/regressions.csv and fractional.csv, and where facts are said to
be to layers.csv and localizers.csv."""

from pathlib import Path

from pipeline.analysis.agreement import LOCALIZERS, agreement_table, by_name, exact
from pipeline.analysis.fractional import fractional_table
from pipeline.analysis.layers import layer_table, traces
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.regression import Design, regression_table
from pipeline.settings.params import Params
from pipeline.tables import FACTS, SCORES, TRACE, read, write_csv
from stages._run import run_stage


def main(params: Params) -> None:
    """Run every regression that params names, with intervals and tests, compare layers to edit at, and localizers."""
    settings, data, reports = params.regressions, Path("data"), Path("reports")
    design = Design(**settings.design, plan=Resampling(**settings.resampling, seed=params.seed))
    scores = read(data / "scores.parquet", SCORES)
    table = regression_table(scores, settings.scores, settings.trace_measures, design)
    bounded = fractional_table(scores, settings.scores, settings.trace_measures, design)
    cheaper = by_name(read(data / "localizers.parquet", LOCALIZERS))
    localizers = traces(scores, settings.trace_measures) | cheaper
    layers = layer_table(scores, settings.scores, localizers, design.plan, keep_null_layers=design.keep_null_layers)
    traced = exact(read(data / "trace.parquet", TRACE), settings.trace_measures)
    relation = read(data / "facts.parquet", FACTS).set_index("fact_id")["relation"]
    agreement = agreement_table(cheaper, traced, relation, design.plan)
    made = {"regressions": table, "fractional": bounded, "layers": layers, "localizers": agreement}
    for name, rows in made.items():
        write_csv(rows, reports / f"{name}.csv")


if __name__ == "__main__":
    run_stage("regressions", main)
