"""Stage `report`: tables to reports/report.html, figures, metrics, plot tables and manifest."""

from pathlib import Path

from pipeline.analysis.collapse import collapse_table, r2_without_collapsed
from pipeline.analysis.comparison import comparison_table
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.reverse import reverse_table
from pipeline.analysis.scores import count_edits, rewrite_by_layer_table, trace_by_layer_table
from pipeline.analysis.targets import function_word_targets
from pipeline.disk import write_bytes
from pipeline.report import collapse, comparison, extras, figures, layers, localizers, manifest, page, reverse, sources
from pipeline.settings.params import Params
from pipeline.tables import read_record, write_csv, write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """Draw the figures and write everything under reports/ but what stage `regressions` wrote."""
    out, data, nats, sure = Path("reports"), Path("data"), params.edit.collapse_nats, params.regressions.confidence
    run = sources.read_all(out, data, params.edit.methods, params.edit.problems)
    agreement, by_trace = sources.read_localizers(out / "localizers.csv"), localizers.of_tracing(run.choices)
    settings, score, measure = params.regressions, params.regressions.scores[0], params.regressions.trace_measures[0]
    plan = Resampling(**settings.resampling, seed=params.seed)
    rewrite, traced = rewrite_by_layer_table(run.scores, plan), trace_by_layer_table(run.trace, plan)
    harm, compared = collapse_table(run.scores, run.edits), comparison_table(run.scores, plan)
    back = reverse_table(run.scores, run.edits, compared)
    r2 = r2_without_collapsed(run.scores, score, measure, keep_null_layers=settings.null_layers == "keep")
    fits = read_record(data / "inputs" / "measures.json")
    cheaper = localizers.sections(agreement, run.choices, sure)
    more = [*cheaper, *reverse.sections(back), *extras.sections(out, data, fits, run.model["fingerprint"], sure)]
    plots = [
        figures.trace_by_layer(traced, sure),
        figures.trace_heatmap(run.trace, run.facts, params.report.example_fact),
        figures.rewrite_by_layer(rewrite, sure),
        figures.score_against_trace(run.scores, score, measure),
        figures.r2_bars(run.regressions, run.paper),
        collapse.collapse_by_layer_plot(harm, nats),
        layers.layers_plot(by_trace, sure),
    ]
    saved = page.save(plots + [plot for section in more for plot in section.plots], out / "figures", params.report.dpi)
    made = {"rewrite_by_layer": rewrite, "trace_by_layer": traced, "collapse": harm, "collapse_r2": r2}
    for name, table in (made | {"methods": compared, "reverse": back}).items():
        write_csv(table, out / f"{name}.csv")
    counts, targets = count_edits(run.edits, params.edit.erasure_min_p), function_word_targets(run.edits)
    write_json(page.metrics(run.regressions, run.scores, run.facts, counts, targets), out / "metrics.json")
    of_run = manifest.manifest(run.model, run.statistics, params.tree(), run.timings)
    write_json(of_run, out / "manifest.json")
    told = {"layers": layers.section(by_trace, sure), "methods": comparison.section(compared)}
    text = page.render(
        run, title=params.report.title, edit_counts=counts, targets=targets,
        sections=told | {"collapse": collapse.section(harm, r2, nats)}, more=more,
        confidence=sure, permutations=plan.permutations, pictures=saved, manifest=manifest.lasting(of_run),
    )  # fmt: skip
    write_bytes(out / "report.html", text.encode("utf-8"))


if __name__ == "__main__":
    run_stage("report", main)
