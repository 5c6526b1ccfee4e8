"""What the report says of edits that disable the model, and where it draws nothing."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.collapse import collapse_table
from pipeline.analysis.scores import rewrite_by_layer_table
from pipeline.report import collapse, figures
from pipeline.report import page as report
from tests.analysis.synthetic import Run, make_run
from tests.report.made import PLAN, Made, Page, composed, explored, scored, told


def broken() -> Run:
    """A run of six facts in which the edits of two facts at layers 1 and 4 collapse the model, for two problems."""
    run = make_run(6, 8)
    edits = run.edits
    rows = edits["problem"].isin(["error_injection", "fact_erasure"]) & edits["layer"].isin([1, 4])
    rows &= edits["fact_id"].isin(["capital.002", "capital.004"])
    edits.loc[rows, ["text_loss_post", "denominator", "update_norm"]] = [7.25, -3e-4, 55.0]
    return run


def test_a_run_without_collapse_says_so_in_a_sentence_and_draws_nothing(made: Made) -> None:
    text = re.sub(r"\s+", " ", Page(made.page).text)
    assert (
        "No edit collapsed the model: none of 1799 edits by ROME with key: prompt (the update is aimed at the mean key "
        "and divides by the bare prompt's) raised the loss of the model's own text by more than 0.5 nats a token; the "
        "largest rise is 0.010." in text
    )
    assert "least denominator" not in text
    assert collapse.collapse_by_layer_plot(collapse_table(made.scores, made.run.edits), 0.5) is None


def test_the_section_counts_them_and_shows_r2_without_them(made: Made, tmp_path: Path) -> None:
    run = broken()
    section = told(run, scored(run))
    assert section["sentence"].startswith("8 of 239 edits by ROME with key: prompt")
    assert "by more than 0.5 nats a token" in section["sentence"]
    assert re.search(
        r"Without their rows, R² of the rewrite score changes by [+-]0\.\d{3} to [+-]0\.\d{3} \(layer\)",
        section["sentence"],
    )
    assert [row["problem"] for row in section["rows"]] == ["error_injection", "fact_erasure"]
    row = section["rows"][1]
    assert (row["edits"], row["collapsed"], row["layers"], row["rise"]) == (48, 4, "1, 4", pytest.approx(4.25))
    assert row["least"] == 3e-4
    scores = scored(run)
    plot = collapse.collapse_by_layer_plot(collapse_table(scores, run.edits), 0.5)
    document = composed(run, scores, made.regressions, [plot])
    pictures = report.save(document.plots, tmp_path, 50)
    page = Page(report.render(document, pictures, explored(run, scores), tmp_path))
    text = re.sub(r"\s+", " ", page.text)
    assert page.wrong == page.open == []
    assert f"fact erasure ROME, key: prompt 48 4 1, 4 4.250 3.0e-04 {row['r2_layer']:.3f}" in text


def test_the_figure_has_a_line_for_each_method(tmp_path: Path) -> None:
    run = broken()
    other = run.edits.assign(method="ft", update_key="", denominator=np.nan, text_loss_post=3.01)
    both = Run(facts=run.facts, trace=run.trace, edits=pd.concat([run.edits, other], ignore_index=True))
    table = collapse_table(scored(both), both.edits)
    plot = collapse.collapse_by_layer_plot(table, 0.5)
    assert plot is not None
    lines = {line.get_label(): line.get_ydata() for line in plot.figure.axes[0].lines}
    assert list(lines) == ["ROME", "FT"]
    assert lines["ROME"] == pytest.approx([0, 4 / 30, 0, 0, 4 / 30, 0, 0, 0])
    assert not np.any(lines["FT"])
    assert "8 of 478 edits" in plot.caption
    assert plot.save(tmp_path, 50)[0].stat().st_size > 1000
    section = told(both, scored(both))
    assert "bare prompt's) and FT collapsed the model" in section["sentence"]
    assert {row["method"] for row in section["rows"]} == {"rome"}


def test_it_says_where_nothing_was_measured_or_no_regression_is_defined() -> None:
    run = make_run(3, 4)
    run.edits[["text_loss_pre", "text_loss_post"]] = np.nan
    section = told(run, scored(run))
    assert section == {
        "sentence": "Whether edits disable the model was not measured (edit.text_tokens is 0).", "rows": [],
    }  # fmt: skip
    few = make_run(2, 4)
    few.edits["text_loss_post"] = np.inf
    section = told(few, scored(few))
    assert section["sentence"].endswith("No regression is defined both with and without them.")
    assert len(section["rows"]) == 5


def test_figures_of_earlier_runs_are_taken_away(made: Made, tmp_path: Path) -> None:
    plots = [figures.rewrite_by_layer(rewrite_by_layer_table(made.scores, PLAN), 0.95)]
    for name in ("collapse_by_layer.svg", "collapse_by_layer.png", "notes.txt"):
        (tmp_path / name).write_text("old")
    saved = report.save(plots, tmp_path, 50)
    assert [picture.title for picture in saved] == ["Edit success by layer"]
    drawn = {f"rewrite_by_layer{end}" for end in (".svg", ".png", "-narrow.svg")}
    assert {path.name for path in tmp_path.iterdir()} == drawn | {"notes.txt"}
