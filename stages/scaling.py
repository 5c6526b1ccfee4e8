"""Stage `scaling`: many edits at once, by relation and mixed, and MEMIT by the width and place of its window."""

from pathlib import Path

from pipeline.analysis.profiles import Resampling
from pipeline.analysis.scaling import mixtures_table, places_table, relations_table, scaling_table
from pipeline.compute import inputs, scaling
from pipeline.compute.batches import once_each
from pipeline.edit.methods import SETTINGS
from pipeline.settings.params import Params
from pipeline.tables import write, write_csv
from stages._run import run_stage

REPORTS = Path("reports")


def main(params: Params) -> None:
    """The known facts to reports/scaling.csv, relations.csv, mixtures.csv and places.csv; the probabilities and texts
    behind the first three to data/measures/scaling.parquet.
    """
    model, facts = inputs.model(params, "scaling"), once_each(inputs.known())
    rows = scaling.many_at_once(params, model, facts)
    edits = scaling.places(params, model, facts)
    write(rows, inputs.MEASURES / "scaling.parquet")
    plan = Resampling(**params.regressions.resampling, seed=params.seed)
    methods, counts = params.scaling.methods, params.scaling.counts
    tables = {
        "scaling": scaling_table(rows, methods, counts, plan),
        "relations": relations_table(rows, methods, plan),
        "mixtures": mixtures_table(rows, plan),
        "places": places_table(edits, plan),
    }
    for name, table in tables.items():
        write_csv(table, REPORTS / f"{name}.csv")
    inputs.record_measure(params, "scaling", *(REPORTS / f"{name}.csv" for name in tables))


if __name__ == "__main__":
    run_stage("scaling", main, SETTINGS)
