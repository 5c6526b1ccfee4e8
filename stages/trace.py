"""Stage `trace`: causal traces of the chosen facts."""

from functools import partial

from pipeline.compute import engine, fetch, inputs
from pipeline.compute.machine import crew
from pipeline.compute.trace_job import TraceJob
from pipeline.settings.params import Params
from pipeline.tables import write
from stages._run import run_stage


def main(params: Params) -> None:
    """data/facts.parquet to data/trace.parquet."""
    job = TraceJob(params, inputs.model(params), inputs.facts(), inputs.sd(params))
    fetched = partial(fetch.ensure, params.model.name, params.seed)
    write(engine.run(job, inputs.store(params), crew(params), fetched), inputs.DATA / "trace.parquet")


if __name__ == "__main__":
    run_stage("trace", main)
