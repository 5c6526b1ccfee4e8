"""Stage `edit`: all edits of one method for one problem, with the probabilities before and after."""

import argparse
from functools import partial

from pipeline.compute import inputs, probe, runs, statistics
from pipeline.compute.edit_job import EditJob
from pipeline.edit.methods import METHODS, SETTINGS, moments_window
from pipeline.errors import UserError
from pipeline.settings.fields import PROBLEMS
from pipeline.settings.params import Params
from pipeline.tables import write
from stages._run import run_stage


def main(method: str, problem: str, params: Params) -> None:
    """Facts and statistics to data/edits/<method>-<problem>.parquet."""
    model = inputs.model(params)
    made = statistics.read_for(params, model, inputs.STATISTICS, moments_window(params, method))
    text = probe.read_for(params, model, inputs.STATISTICS)
    facts, sd, folder = inputs.facts(), inputs.sd(params), inputs.STATISTICS
    job = EditJob(params, model, facts, sd, METHODS[method], problem, *made, folder, text)
    table = runs.run(job)
    write(table, inputs.DATA / "edits" / f"{method}-{problem}.parquet")
    frame = table.select(["fact_id", "layer", "status"]).to_pandas().drop_duplicates()
    failed = frame["status"].str.startswith("failed")
    if failed.mean() > params.edit.max_failed_share:
        raise UserError(
            f"{failed.sum()} of {len(frame)} edits of {problem} failed, more than edit.max_failed_share "
            f"{params.edit.max_failed_share:g}; the first: {frame.loc[failed, 'status'].iloc[0]}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--problem", required=True, choices=PROBLEMS)
    asked = parser.parse_args()
    run_stage(f"edit-{asked.method}-{asked.problem}", partial(main, asked.method, asked.problem), SETTINGS)
