"""Stage `report`: tables to reports/report.html, figures, metrics, plot tables and manifest."""

from pathlib import Path

from pipeline.analysis.collapse import collapse_table, r2_without_collapsed
from pipeline.analysis.comparison import comparison_table
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.scores import count_edits, rewrite_by_layer_table, trace_by_layer_table
from pipeline.analysis.targets import function_word_targets
from pipeline.disk import write_bytes
from pipeline.report import collapse, comparison, figures, layers, manifest, page, sources
from pipeline.settings.params import Params
from pipeline.tables import FACTS, SCORES, TRACE, read, read_edits, read_record, write_csv, write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """Draw the figures and write everything under reports/ but regressions.csv and layers.csv."""
    out, data, nats, sure = Path("reports"), Path("data"), params.edit.collapse_nats, params.regressions.confidence
    regressions, choices, paper, left_out = sources.read_all(out, data)
    tables = {"facts": FACTS, "trace": TRACE, "scores": SCORES}
    facts, trace, scores = (read(data / f"{name}.parquet", columns) for name, columns in tables.items())
    edits = read_edits(data / "edits", params.edit.methods, params.edit.problems)
    model = read_record(data / "model.json", name=str)
    settings, score, measure = params.regressions, params.regressions.scores[0], params.regressions.trace_measures[0]
    plan, counts = Resampling(**settings.resampling, seed=params.seed), count_edits(edits, params.edit.erasure_min_p)
    rewrite, traced = rewrite_by_layer_table(scores, plan), trace_by_layer_table(trace, plan)
    harm = collapse_table(scores, edits)
    r2 = r2_without_collapsed(scores, score, measure, keep_null_layers=settings.null_layers == "keep")
    plots = [
        figures.trace_by_layer(traced, sure),
        figures.trace_heatmap(trace, facts, params.report.example_fact),
        figures.rewrite_by_layer(rewrite, sure),
        figures.score_against_trace(scores, score, measure),
        figures.r2_bars(regressions, paper),
        collapse.collapse_by_layer_plot(harm, nats),
        layers.layers_plot(choices, sure),
    ]
    saved = page.save(plots, out / "figures", params.report.dpi)
    statistics, timings = read_record(data / "statistics" / "manifest.json"), manifest.read_timings(data / "timings")
    run, targets = manifest.manifest(model, statistics, params.tree(), timings), function_word_targets(edits)
    made = {"rewrite_by_layer": rewrite, "trace_by_layer": traced, "collapse": harm, "collapse_r2": r2}
    made["methods"] = comparison_table(scores, plan)
    for name, table in made.items():
        write_csv(table, out / f"{name}.csv")
    write_json(page.metrics(regressions, scores, facts, counts, targets), out / "metrics.json")
    write_json(run, out / "manifest.json")
    told = {"layers": layers.section(choices, sure), "methods": comparison.section(made["methods"])}
    text = page.render(
        title=params.report.title, regressions=regressions, paper=paper, facts=facts, edit_counts=counts,
        targets=targets, left_out=left_out, sections=told | {"collapse": collapse.section(harm, r2, nats)},
        model_name=model["name"].removeprefix("packaged:"), n_layers=scores["layer"].nunique(),
        confidence=sure, permutations=plan.permutations, pictures=saved, run=run,
    )  # fmt: skip
    write_bytes(out / "report.html", text.encode("utf-8"))


if __name__ == "__main__":
    run_stage("report", main)
