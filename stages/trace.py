"""Stage `trace`: causal traces of the chosen facts."""

from pipeline.compute import inputs, runs
from pipeline.compute.trace_job import TraceJob
from pipeline.settings.params import Params
from pipeline.tables import write
from stages._run import run_stage


def main(params: Params) -> None:
    """data/facts.parquet to data/trace.parquet."""
    job = TraceJob(params, inputs.model(params), inputs.facts(), inputs.sd(params))
    write(runs.run(job), inputs.DATA / "trace.parquet")


if __name__ == "__main__":
    run_stage("trace", main)
