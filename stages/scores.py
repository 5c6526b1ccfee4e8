"""Stage `scores`: edits, facts and trace to data/scores.parquet."""

from pathlib import Path

import pandas as pd

from pipeline.params import Params
from pipeline.scores import score_table
from pipeline.tables import EDITS, FACTS, TRACE, read, write
from stages._run import run_stage


def main(params: Params) -> None:
    """Score every edit of the methods and problems in params and join the trace measures."""
    edits = pd.concat(
        [
            read(Path(f"data/edits/{method}-{problem}.parquet"), EDITS)
            for method in params.edit.methods
            for problem in params.edit.problems
        ],
        ignore_index=True,
    )
    facts, trace = read(Path("data/facts.parquet"), FACTS), read(Path("data/trace.parquet"), TRACE)
    write(score_table(edits, facts, trace, params.edit.erasure_min_p), Path("data/scores.parquet"))


if __name__ == "__main__":
    run_stage("scores", main)
