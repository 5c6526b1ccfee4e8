"""Stage `report`: tables to reports/report.html and report.md, figures, metrics, plot tables and manifest."""

from pathlib import Path

from pipeline.analysis.by_layer import by_layer_tables
from pipeline.analysis.collapse import collapse_table, r2_without_collapsed
from pipeline.analysis.comparison import comparison_table
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.reverse import reverse_table
from pipeline.analysis.scores import count_edits
from pipeline.analysis.targets import function_word_targets
from pipeline.disk import write_bytes
from pipeline.report import collapse, comparison, extras, layers, localizers, manifest, markdown, page, reverse, sources
from pipeline.report.document import document
from pipeline.report.explorer import explorer
from pipeline.report.metrics import metrics
from pipeline.report.pictures import pictures
from pipeline.settings.params import Params
from pipeline.tables import read_record, write_csv, write_json
from stages._run import run_stage


def main(params: Params) -> None:
    """Draw the figures and write everything under reports/ but what stage `regressions` wrote."""
    out, data, nats, sure = Path("reports"), Path("data"), params.edit.collapse_nats, params.regressions.confidence
    run = sources.read_all(out, data, params.edit.methods, params.edit.problems)
    settings, score, measure = params.regressions, params.regressions.scores[0], params.regressions.trace_measures[0]
    plan = Resampling(**settings.resampling, seed=params.seed)
    keep, named = settings.keep_null_layers, (settings.scores, settings.trace_measures)
    made = by_layer_tables(run.scores, run.trace, *named, plan, keep_null_layers=keep)
    harm, compared = collapse_table(run.scores, run.edits), comparison_table(run.scores, plan)
    back = reverse_table(run.scores, run.edits, compared)
    r2 = r2_without_collapsed(run.scores, score, measure, keep_null_layers=keep)
    fits, model = read_record(data / "inputs" / "measures.json"), run.model["fingerprint"]
    more = [*localizers.sections(run.agreement, run.choices, sure), *reverse.sections(back)]
    plots = pictures(
        run, made, harm, score=score, measure=measure, example_fact=params.report.example_fact, collapse_nats=nats,
        confidence=sure,
    )  # fmt: skip
    for name, table in (made | {"collapse": harm, "collapse_r2": r2, "methods": compared, "reverse": back}).items():
        write_csv(table, out / f"{name}.csv")
    counts, targets = count_edits(run.edits, params.edit.erasure_min_p), function_word_targets(run.edits)
    write_json(metrics(run.regressions, run.scores, run.facts, counts, targets), out / "metrics.json")
    of_run = manifest.manifest(run.model, run.statistics, params.tree(), run.timings, extras.shown(data, fits, model))
    write_json(of_run, out / "manifest.json")
    told = {"layers": layers.section(localizers.of_tracing(run.choices), sure), "methods": comparison.section(compared)}
    report = document(
        run, title=params.report.title, plots=plots, sections=told | {"collapse": collapse.section(harm, r2, nats)},
        more=[*more, *extras.sections(out, data, fits, model, sure)], edit_counts=counts,
        targets=targets, confidence=sure, permutations=plan.permutations, manifest=manifest.lasting(of_run),
    )  # fmt: skip
    saved = page.save(report.plots, out / "figures", params.report.dpi)
    facts = explorer(run.facts, run.trace, run.edits, run.scores, run.localizers, extras.texts(data, fits, model))
    write_bytes(out / "report.html", page.render(report, saved, facts, out).encode())
    write_bytes(out / "report.md", markdown.render(report, saved, out).encode())


if __name__ == "__main__":
    run_stage("report", main)
