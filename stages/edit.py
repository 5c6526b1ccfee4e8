"""Stage `edit`: one method and problem at every edited layer, with probabilities before and after."""

import argparse
from functools import partial

from pipeline import engine
from pipeline.errors import UserError
from pipeline.jobs import crew
from pipeline.params import METHODS, PROBLEMS, Params
from pipeline.tables import write
from stages import _inputs, _jobs
from stages._run import run_stage


def main(method: str, problem: str, params: Params) -> None:
    """Facts and statistics to data/edits/<method>-<problem>.parquet."""
    job = _jobs.edit(params, method, problem)
    table = engine.run(job, _inputs.store(), crew(params))
    write(table, _inputs.DATA / "edits" / f"{method}-{problem}.parquet")
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
    run_stage(f"edit-{asked.method}-{asked.problem}", partial(main, asked.method, asked.problem))
