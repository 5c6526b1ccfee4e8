"""Stage `statistics`: second moments of the edited blocks, and the context prefixes."""

from pipeline import statistics
from pipeline.jobs import set_up
from pipeline.params import Params
from stages import _inputs
from stages._run import run_stage


def main(params: Params) -> None:
    """data/statistics: moments.safetensors, contexts.json, manifest.json."""
    model = _inputs.model(params)
    folder = _inputs.DATA / "statistics"
    key = statistics.key(params, model)
    if not statistics.present(folder, key):
        statistics.compute(set_up(params, alone=True), params, model, folder, key)


if __name__ == "__main__":
    run_stage("statistics", main)
