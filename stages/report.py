"""Stage `report`: tables to reports/report.html, figures, metrics, plot tables and manifest."""

from pathlib import Path

from pipeline.analysis.profiles import Resampling
from pipeline.analysis.scores import count_edits, rewrite_by_layer_table, trace_by_layer_table
from pipeline.analysis.targets import function_word_targets
from pipeline.disk import write_bytes
from pipeline.report import figures, manifest
from pipeline.report import page as report
from pipeline.settings.params import Params
from pipeline.tables import FACTS, SCORES, TRACE, read, read_edits, read_record, write_csv, write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """Draw the figures and write everything that stands under reports/, but regressions.csv."""
    out, data = Path("reports"), Path("data")
    regressions = report.read_regressions(out / "regressions.csv")
    tables = {"facts": FACTS, "trace": TRACE, "scores": SCORES}
    facts, trace, scores = (read(data / f"{name}.parquet", columns) for name, columns in tables.items())
    edits = read_edits(data / "edits", params.edit.methods, params.edit.problems)
    paper = report.read_paper(data / "paper" / "hase2023_r2.csv")
    left_out = report.read_left_out(data / "left_out.csv")
    model = read_record(data / "model.json", name=str)
    settings = params.regressions
    plan = Resampling(**settings.resampling, seed=params.seed)
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
    run = manifest.manifest(
        model,
        read_record(data / "statistics" / "manifest.json"),
        params.tree(),
        manifest.read_timings(data / "timings"),
    )
    write_csv(rewrite, out / "rewrite_by_layer.csv")
    write_csv(traced, out / "trace_by_layer.csv")
    targets = function_word_targets(edits)
    write_json(report.metrics(regressions, scores, facts, counts, targets), out / "metrics.json")
    write_json(run, out / "manifest.json")
    page = report.render(
        title=params.report.title, regressions=regressions, paper=paper, facts=facts, edit_counts=counts,
        targets=targets, left_out=left_out, pictures=saved, run=run, model_name=model["name"].removeprefix("packaged:"),
        n_layers=scores["layer"].nunique(), confidence=settings.confidence, permutations=plan.permutations,
    )  # fmt: skip
    write_bytes(out / "report.html", page.encode("utf-8"))


if __name__ == "__main__":
    run_stage("report", main)
