"""Stage `report`: tables to reports/report.html, figures, metrics, plot tables and manifest."""

from pathlib import Path

from pipeline.analysis.collapse import collapse_table, r2_without_collapsed
from pipeline.analysis.comparison import comparison_table
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.scores import count_edits, rewrite_by_layer_table, trace_by_layer_table
from pipeline.analysis.targets import function_word_targets
from pipeline.disk import write_bytes
from pipeline.report import collapse, comparison, figures, manifest
from pipeline.report import page as report
from pipeline.settings.params import Params
from pipeline.tables import FACTS, SCORES, TRACE, read, read_edits, read_record, write_csv, write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """Draw the figures and write everything that stands under reports/, but regressions.csv."""
    out, data, nats = Path("reports"), Path("data"), params.edit.collapse_nats
    regressions = report.read_regressions(out / "regressions.csv")
    tables = {"facts": FACTS, "trace": TRACE, "scores": SCORES}
    facts, trace, scores = (read(data / f"{name}.parquet", columns) for name, columns in tables.items())
    edits = read_edits(data / "edits", params.edit.methods, params.edit.problems)
    paper, left_out = report.read_paper(data / "paper" / "hase2023_r2.csv"), report.read_left_out(data / "left_out.csv")
    model = read_record(data / "model.json", name=str)
    settings, score, measure = params.regressions, params.regressions.scores[0], params.regressions.trace_measures[0]
    plan, counts = Resampling(**settings.resampling, seed=params.seed), count_edits(edits, params.edit.erasure_min_p)
    rewrite, traced = rewrite_by_layer_table(scores, plan), trace_by_layer_table(trace, plan)
    harm = collapse_table(scores, edits)
    r2 = r2_without_collapsed(scores, score, measure, keep_null_layers=settings.null_layers == "keep")
    plots = [
        figures.trace_by_layer(traced, settings.confidence),
        figures.trace_heatmap(trace, facts, params.report.example_fact),
        figures.rewrite_by_layer(rewrite, settings.confidence),
        figures.score_against_trace(scores, score, measure),
        figures.r2_bars(regressions, paper),
        collapse.collapse_by_layer_plot(harm, nats),
    ]
    saved = report.save(plots, out / "figures", params.report.dpi)
    statistics, timings = read_record(data / "statistics" / "manifest.json"), manifest.read_timings(data / "timings")
    run, targets = manifest.manifest(model, statistics, params.tree(), timings), function_word_targets(edits)
    compared = comparison_table(scores, plan)
    made = {"rewrite_by_layer": rewrite, "trace_by_layer": traced, "collapse": harm, "collapse_r2": r2}
    for name, table in (made | {"methods": compared}).items():
        write_csv(table, out / f"{name}.csv")
    write_json(report.metrics(regressions, scores, facts, counts, targets), out / "metrics.json")
    write_json(run, out / "manifest.json")
    page = report.render(
        title=params.report.title, regressions=regressions, paper=paper, facts=facts, edit_counts=counts,
        targets=targets, left_out=left_out, collapse=collapse.section(harm, r2, nats), permutations=plan.permutations,
        methods=comparison.section(compared), pictures=saved, run=run, confidence=settings.confidence,
        model_name=model["name"].removeprefix("packaged:"), n_layers=scores["layer"].nunique(),
    )  # fmt: skip
    write_bytes(out / "report.html", page.encode("utf-8"))


if __name__ == "__main__":
    run_stage("report", main)
