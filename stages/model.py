"""Stage `model`: fetch, convert or find the model, load it once, and write down what it is."""

from pathlib import Path

from pipeline import jobs
from pipeline.forward import resumes
from pipeline.params import Params, check_against_model
from pipeline.progress import say
from pipeline.tables import write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """params.model to data/model.json."""
    lm = jobs.set_up(params)
    check_against_model(params, lm.n_layers)
    fast = resumes(lm)
    if not fast:
        say(f"the resumed forward does not equal {lm.name}'s own; all work takes the plain path, which is slow")
    write_json(lm.describe() | {"device": str(lm.device), "fast_path": fast}, Path("data/model.json"))


if __name__ == "__main__":
    run_stage("model", main)
