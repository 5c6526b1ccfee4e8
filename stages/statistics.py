"""Stage `statistics`: second moments of the edited blocks, and the context prefixes."""

from pipeline.compute import inputs, statistics
from pipeline.compute.fetch import opened
from pipeline.settings.params import Params
from stages._run import run_stage


def main(params: Params) -> None:
    """data/statistics: moments.safetensors, contexts.json, manifest.json."""
    key = statistics.key_of(params, inputs.model(params))
    if not statistics.present(inputs.STATISTICS, key):
        statistics.compute(opened(params, alone=True), params, inputs.STATISTICS, key)


if __name__ == "__main__":
    run_stage("statistics", main)
