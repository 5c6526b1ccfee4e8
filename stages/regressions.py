"""Stage `regressions`: data/scores.parquet to reports/regressions.csv."""

from pathlib import Path

from pipeline.params import Params
from pipeline.profiles import Resampling
from pipeline.regression import Design, regression_table
from pipeline.report import save_csv
from pipeline.tables import SCORES, read
from stages._run import run_stage


def main(params: Params) -> None:
    """Run every regression that params names, with intervals and tests."""
    settings = params.regressions
    design = Design(
        keep_null_layers=settings.null_layers == "keep",
        folds=settings.folds,
        plan=Resampling(
            samples=settings.bootstrap_samples,
            permutations=settings.permutations,
            confidence=settings.confidence,
            seed=params.seed,
        ),
    )
    scores = read(Path("data/scores.parquet"), SCORES)
    table = regression_table(scores, settings.scores, settings.trace_measures, design)
    save_csv(Path("reports/regressions.csv"), table)


if __name__ == "__main__":
    run_stage("regressions", main)
