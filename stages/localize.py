"""Stage `localize`: what cheaper localizers than causal tracing say of where the chosen facts are."""

from pipeline.compute import inputs, runs
from pipeline.compute.localize_job import SCHEMA, LocalizeJob
from pipeline.locate.localizers import LOCALIZERS
from pipeline.settings.params import Params
from pipeline.tables import write
from stages._run import run_stage


def main(params: Params) -> None:
    """data/facts.parquet to data/localizers.parquet, which has no rows where no localizer is asked for."""
    chosen = tuple(LOCALIZERS[name] for name in params.localize.methods)
    job = LocalizeJob(params, inputs.model(params), inputs.facts(), inputs.sd(params), chosen)
    table = runs.run(job) if chosen else SCHEMA.empty_table()
    write(table, inputs.DATA / "localizers.parquet")


if __name__ == "__main__":
    run_stage("localize", main)
