"""Stage `model`: fetch, convert, train or find the model, load it once, and write down what it is."""

from pipeline.compute.fetch import opened
from pipeline.compute.inputs import DATA
from pipeline.lm.forward import proven
from pipeline.progress import say
from pipeline.settings.params import Params, check_against_model
from pipeline.tables import write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """params.model to data/model.json."""
    lm = proven(opened(params))
    check_against_model(params, lm.n_layers)
    if not lm.fast:
        say(f"the resumed forward does not equal {lm.name}'s own; all work takes the plain path, which is slow")
    write_json(lm.describe() | {"device": str(lm.device), "fast_path": lm.fast}, DATA / "model.json")


if __name__ == "__main__":
    run_stage("model", main)
