"""Stage `scores`: edits, facts and trace to data/scores.parquet."""

from pathlib import Path

from pipeline.analysis.collapse import with_harm
from pipeline.analysis.scores import score_table
from pipeline.settings.params import Params
from pipeline.tables import FACTS, TRACE, read, read_edits, write
from stages._run import run_stage

DATA = Path("data")


def main(params: Params) -> None:
    """Score every edit of the methods and problems in params, join the trace measures and what it did to the model."""
    edits = read_edits(DATA / "edits", params.edit.methods, params.edit.problems)
    facts, trace = read(DATA / "facts.parquet", FACTS), read(DATA / "trace.parquet", TRACE)
    scores = score_table(edits, facts, trace, params.edit.erasure_min_p)
    write(with_harm(scores, edits, params.edit.collapse_nats), DATA / "scores.parquet")


if __name__ == "__main__":
    run_stage("scores", main)
