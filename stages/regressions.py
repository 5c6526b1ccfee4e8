"""Stage `regressions`: data/scores.parquet to reports/regressions.csv."""

from pathlib import Path

from pipeline.params import Params
from pipeline.regression import regression_table
from pipeline.report import save_csv
from pipeline.tables import SCORES, read
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
    save_csv(Path("reports/regressions.csv"), table)


if __name__ == "__main__":
    run_stage("regressions", main)
