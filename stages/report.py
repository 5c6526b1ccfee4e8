"""Stage `report`: tables to reports/report.html, figures, metrics, plot tables and manifest."""

from pathlib import Path

import pandas as pd

from pipeline import figures, report
from pipeline.params import Params
from pipeline.profiles import Resampling
from pipeline.scores import count_edits, rewrite_by_layer_table, trace_by_layer_table
from pipeline.tables import EDITS, FACTS, SCORES, TRACE, read, read_record, write_bytes, write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """Draw the figures and write everything that stands under reports/, but regressions.csv."""
    out, data = Path("reports"), Path("data")
    regressions = report.read_regressions(out / "regressions.csv")
    tables = {"facts": FACTS, "trace": TRACE, "scores": SCORES}
    facts, trace, scores = (read(data / f"{name}.parquet", columns) for name, columns in tables.items())
    names = [f"{method}-{problem}" for method in params.edit.methods for problem in params.edit.problems]
    edits = pd.concat([read(data / "edits" / f"{name}.parquet", EDITS) for name in names], ignore_index=True)
    paper = report.read_paper(data / "paper" / "hase2023_r2.csv")
    model = read_record(data / "model.json", name=str)
    settings = params.regressions
    plan = Resampling(
        samples=settings.bootstrap_samples,
        permutations=settings.permutations,
        confidence=settings.confidence,
        seed=params.seed,
    )

    counts = count_edits(edits, params.edit.erasure_min_p)
    rewrite = rewrite_by_layer_table(scores, plan)
    traced = trace_by_layer_table(trace, plan)
    plots = [
        figures.trace_by_layer(traced, settings.confidence),
        figures.trace_heatmap(trace, facts, params.report.example_fact),
        figures.rewrite_by_layer(rewrite, settings.confidence),
        figures.score_against_trace(scores, settings.scores[0], settings.trace_measures[0]),
        figures.r2_bars(regressions, paper),
    ]
    saved = [report.Picture(plot.title, plot.caption, *plot.save(out / "figures", params.report.dpi)) for plot in plots]
    run = report.manifest(
        model,
        read_record(data / "statistics" / "manifest.json"),
        params.model_dump(mode="json"),
        report.read_timings(data / "timings"),
    )
    report.save_csv(out / "rewrite_by_layer.csv", rewrite)
    report.save_csv(out / "trace_by_layer.csv", traced)
    write_json(report.metrics(regressions, scores, facts, counts), out / "metrics.json")
    write_json(run, out / "manifest.json")
    page = report.render(
        title=params.report.title, regressions=regressions, paper=paper, facts=facts, edit_counts=counts,
        pictures=saved, run=run, model_name=model["name"].removeprefix("packaged:"),
        n_layers=scores["layer"].nunique(), confidence=settings.confidence, permutations=plan.permutations,
    )  # fmt: skip
    write_bytes(out / "report.html", page.encode("utf-8"))


if __name__ == "__main__":
    run_stage("report", main)
