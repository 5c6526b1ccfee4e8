"""Stage `statistics`: second moments of the edited blocks, context prefixes, and the text that edits are tried on."""

import shutil

from pipeline.compute import fetch, inputs, probe, runs, statistics
from pipeline.settings.params import Params
from pipeline.watch import Work
from stages._run import run_stage

TEXT = inputs.DATA / ".text"  # of a run that is under way: an interrupted one goes on from it


def main(params: Params) -> None:
    """data/statistics: moments.safetensors, contexts.json, manifest.json, probe.json."""
    model = inputs.model(params)
    window = inputs.window()
    moments = statistics.present(inputs.STATISTICS, statistics.key_of(params, model, window))
    if moments and probe.present(params, model, inputs.STATISTICS):
        shutil.rmtree(TEXT, ignore_errors=True)  # of a run that was stopped just before it did so
        Work.count(1, 1)  # all was there
        return
    batches = None if moments else runs.sampled_text(params, model, TEXT)
    # With the threads of one worker: two were three times slower than one where the machine had other work to do.
    lm = fetch.opened(params)
    if not moments:
        statistics.compute(lm, params, inputs.STATISTICS, model, window, batches)
    probe.compute(lm, params, model, inputs.STATISTICS)
    shutil.rmtree(TEXT, ignore_errors=True)


if __name__ == "__main__":
    run_stage("statistics", main)
