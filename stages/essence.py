"""Stage `essence`: the edits once more, and what they leave of what the model has to say of their subjects."""

from pathlib import Path

from pipeline.analysis.essence import R2_COLUMNS, beside_traces, essence_by_layer, with_score
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.regression import Design, regression_table
from pipeline.compute import inputs, runs, statistics
from pipeline.compute.essence_job import EssenceJob
from pipeline.edit.methods import METHODS, SETTINGS, widest_window
from pipeline.settings.params import Params
from pipeline.tables import SCORES, read, write, write_csv
from stages._run import run_stage

TABLE, BY_LAYER, R2 = inputs.DATA / "essence.parquet", Path("reports/essence.csv"), Path("reports/essence_r2.csv")


def main(params: Params) -> None:
    """Facts, statistics and scores to data/essence.parquet, reports/essence.csv and reports/essence_r2.csv."""
    model, folder = inputs.model(params), inputs.STATISTICS
    made = statistics.read_for(params, model, folder, widest_window(params))
    job = EssenceJob.of_run(params, model, inputs.facts(), inputs.sd(params), METHODS, made, folder)
    measured = runs.run(job)
    table, settings = with_score(measured.to_pandas()), params.regressions
    plan = Resampling(**settings.resampling, seed=params.seed)
    design = Design(**settings.design, plan=plan)
    rows = beside_traces(read(inputs.DATA / "scores.parquet", SCORES), table)
    write(table, TABLE)
    write_csv(essence_by_layer(table, plan), BY_LAYER)
    write_csv(regression_table(rows, ["essence"], settings.trace_measures, design)[list(R2_COLUMNS)], R2)
    inputs.record_measure(params, "essence", TABLE, BY_LAYER, R2)


if __name__ == "__main__":
    run_stage("essence", main, SETTINGS)
