"""Stage `table`: CounterFact's table, each method at the layer that is best on other facts and at the papers' depth."""

from pathlib import Path

import pandas as pd

from pipeline.analysis.counterfact import counterfact_table
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.table import best_layers, methods_table
from pipeline.compute import inputs, runs, table
from pipeline.compute.table_job import WRITTEN
from pipeline.edit.methods import SETTINGS
from pipeline.settings.params import Params
from pipeline.tables import write, write_csv
from stages._run import run_stage

MEASURES = inputs.DATA / "table.parquet", inputs.DATA / "table_texts.parquet"
TABLES = Path("reports/counterfact.csv"), Path("reports/counterfact_layers.csv")


def main(params: Params) -> None:
    """Known facts to probabilities and texts of each method, to their means, and to those by layer of other facts."""
    model, settings = inputs.model(params, "table"), params.table
    shown, others = table.deal(inputs.known(), settings.count, settings.choose_on)
    tried = [table.choosing_job(params, model, others, method) for method in settings.methods]
    inputs.record_begun(params, "table", *tried)
    choice = pd.concat([runs.run(job).to_pandas() for job in tried], ignore_index=True)
    job, rows = table.reporting_job(params, model, shown, best_layers(choice))
    inputs.record_begun(params, "table", *tried, job)
    made = runs.run(job).to_pandas()
    texts = table.texts(params, made)
    edits = made[made["prompt_kind"] != WRITTEN].drop(columns=["prompt", "text"])
    plan = Resampling(**params.regressions.resampling, seed=params.seed)
    for of_facts, path in zip((edits, texts), MEASURES, strict=True):
        write(of_facts, path)
    means = methods_table(edits, texts, rows, plan), counterfact_table(choice, plan)
    for mean, path in zip(means, TABLES, strict=True):
        write_csv(mean, path)
    inputs.record_measure(params, "table", *MEASURES, *TABLES)


if __name__ == "__main__":
    run_stage("table", main, SETTINGS)
