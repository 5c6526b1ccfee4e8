"""Stage `trace`: causal traces of the chosen facts."""

from pipeline import engine
from pipeline.jobs import crew
from pipeline.params import Params
from pipeline.tables import write
from stages import _inputs, _jobs
from stages._run import run_stage


def main(params: Params) -> None:
    """data/facts.parquet to data/trace.parquet."""
    job = _jobs.trace(params)
    write(engine.run(job, _inputs.store(), crew(params)), _inputs.DATA / "trace.parquet")


if __name__ == "__main__":
    run_stage("trace", main)
