"""Stage `regressions`: data/scores.parquet to reports/regressions.csv."""

from pathlib import Path

from pipeline.analysis.regression import regression_table
from pipeline.settings.params import Params
from pipeline.tables import SCORES, read, write_csv
from stages._run import run_stage


def main(params: Params) -> None:
    """Run every regression that params names, with intervals and tests."""
    settings = params.regressions
    table = regression_table(
        read(Path("data/scores.parquet"), SCORES),
        settings.scores,
        settings.trace_measures,
        settings.bootstrap_samples,
        settings.confidence,
        params.seed,
    )
    write_csv(table, Path("reports/regressions.csv"))


if __name__ == "__main__":
    run_stage("regressions", main)
