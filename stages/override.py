"""Stage `override`: edited models traced, and MLP outputs replaced in them."""

from pathlib import Path

from pipeline.analysis.override import Least, layers_table, override_table
from pipeline.analysis.profiles import Resampling
from pipeline.compute import inputs, runs, statistics
from pipeline.compute.override_job import OverrideJob
from pipeline.edit.methods import METHODS, SETTINGS, widest_window
from pipeline.settings.params import Params
from pipeline.tables import write, write_csv
from stages._run import run_stage

TABLE = inputs.DATA / "override.parquet"
MEANS, BY_LAYER = Path("reports/override.csv"), Path("reports/override_layers.csv")


def main(params: Params) -> None:
    """Facts and statistics to data/override.parquet, reports/override.csv and reports/override_layers.csv."""
    model, folder, settings = inputs.model(params, "override"), inputs.STATISTICS, params.override
    made = statistics.read_for(params, model, folder, widest_window(params))
    job = OverrideJob.of_run(params, model, inputs.facts(), inputs.sd(params), METHODS, made, folder)
    table = runs.run(job)
    write(table, TABLE)
    of = table.to_pandas(), settings.layers, Least(change=settings.min_change, effect=settings.min_effect)
    plan = Resampling(**params.regressions.resampling, seed=params.seed)
    write_csv(override_table(*of, plan), MEANS)
    write_csv(layers_table(*of, plan), BY_LAYER)
    inputs.record_measure(params, "override", TABLE, MEANS, BY_LAYER)


if __name__ == "__main__":
    run_stage("override", main, SETTINGS)
