"""Stage `maps`: average indirect effects of the facts by token role and layer, and those of the severed model."""

from pathlib import Path

from pipeline.analysis import aie
from pipeline.analysis.profiles import Resampling
from pipeline.compute import inputs, maps_job, runs
from pipeline.settings.params import Params
from pipeline.tables import write, write_csv
from stages._run import run_stage


def main(params: Params) -> None:
    """data/facts.parquet to data/maps.parquet and, of its means, the CSV files of `pipeline.analysis.aie`."""
    jobs = maps_job.jobs(params, inputs.model(params, "maps"), inputs.facts(), inputs.sd(params))
    traced = maps_job.assembled(runs.run(job) for job in jobs)
    plan = Resampling(**params.regressions.resampling, seed=params.seed)
    whole, made = inputs.DATA / "maps.parquet", {Path("reports") / name: of for name, of in aie.TABLES.items()}
    write(traced, whole)
    for path, table in made.items():
        write_csv(table(traced, plan), path)
    inputs.record_measure(params, "maps", whole, *made)


if __name__ == "__main__":
    run_stage("maps", main)
