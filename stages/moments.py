"""Stage `moments`: second moments of the blocks that the stages of measures/dvc.yaml edit."""

import shutil

from pipeline.compute import beside, fetch, inputs, runs, statistics
from pipeline.edit.methods import SETTINGS
from pipeline.settings.params import Params
from pipeline.watch import Work
from stages._run import run_stage

TEXT = inputs.DATA / ".text-moments"  # of a run that is under way: an interrupted one goes on from it


def main(params: Params) -> None:
    """data/measures/statistics: that of the main path where it has all blocks, and otherwise one of its own."""
    model, window = inputs.model(params, "table", "scaling"), beside.widest_window(params)
    wider = beside.edited(params, model)
    present = statistics.present(beside.STATISTICS, statistics.key_of(wider, model, window))
    if not present and not beside.borrow(wider, model, window):
        batches = runs.sampled_text(params, model, TEXT)
        statistics.compute(fetch.opened(params), wider, beside.STATISTICS, model, window, batches)
    else:
        Work.count(1, 1)  # all was there
    shutil.rmtree(TEXT, ignore_errors=True)


if __name__ == "__main__":
    run_stage("moments", main, SETTINGS)
