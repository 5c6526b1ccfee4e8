"""Stage `robustness`: the facts traced with other settings, and the regressions of their edits on those traces."""

from pathlib import Path

from pipeline.analysis.profiles import Resampling
from pipeline.analysis.regression import Design
from pipeline.analysis.robustness import Asked, by_layer, robustness_table
from pipeline.compute import inputs, robustness, runs
from pipeline.edit.methods import SETTINGS
from pipeline.settings.params import Params
from pipeline.tables import FACTS, SCORES, TRACE, read, write, write_csv
from stages._run import run_stage

DATA, TABLE, COUNT = inputs.DATA, Path("reports/robustness.csv"), Path("reports/robustness_count.csv")


def main(params: Params) -> None:
    """Facts, traces and scores to data/robustness.parquet, reports/robustness.csv and reports/robustness_count.csv."""
    asked, settings = params.robustness, params.regressions
    facts = inputs.facts()[: asked.count]
    wanted = robustness.variants(params, inputs.model(params, "robustness"), facts)
    own = robustness.own(params, facts, read(DATA / "trace.parquet", TRACE))
    traced = by_layer(robustness.assembled(own, [(each, runs.run(each.job)) for each in wanted]))
    design = Design(**settings.design, plan=Resampling(**settings.resampling, seed=params.seed))
    regressed = Asked(
        score=settings.scores[0],
        measure=settings.trace_measures[0],
        window=params.trace.windows[0],
        measures=asked.measures,
        layers=asked.layers,
        known=asked.known,
        concentrated=asked.concentrated,
        success=asked.success,
    )
    scores = read(DATA / "scores.parquet", SCORES)
    table, count = robustness_table(scores, traced, read(DATA / "facts.parquet", FACTS), regressed, design)
    write(traced, DATA / "robustness.parquet")
    write_csv(table, TABLE)
    write_csv(count, COUNT)
    inputs.record_measure(params, "robustness", DATA / "robustness.parquet", TABLE, COUNT)


if __name__ == "__main__":
    run_stage("robustness", main, SETTINGS)
