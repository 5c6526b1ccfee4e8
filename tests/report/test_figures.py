"""Figures of a made-up run: they show the tables, and their captions say over what and on how many facts."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from pipeline.analysis.scores import rewrite_by_layer_table, score_table
from pipeline.errors import UserError
from pipeline.report import figures
from pipeline.report.plots import Plot, fitted_line
from pipeline.words import method_label
from tests.analysis.synthetic import PROBLEMS, make_run
from tests.report.made import PLAN, Made, draw


def test_figures_show_the_tables(made: Made) -> None:
    by_layer, heatmap, rewrite, panels, bars = (plot.figure for plot in made.plots)
    assert len(by_layer.axes[0].get_lines()) == 6  # five lines and zero
    grid = heatmap.axes[0].collections[0].get_array()
    assert grid is not None
    assert grid.size == 6 * 30
    assert [text.get_text() for text in heatmap.axes[0].get_yticklabels()][:3] == [
        "The",
        "capital$ *",
        "of *",
    ]
    line = rewrite.axes[0].get_lines()[0]
    means = made.scores.query("problem == 'error_injection'").groupby("layer")["rewrite"].mean()
    assert np.asarray(line.get_ydata(), dtype=float) == pytest.approx(means.to_numpy())
    shown = [ax for ax in panels.axes if ax.get_visible()]
    assert len(shown) == 30
    assert [ax.get_title().partition(":")[0] for ax in shown] == [str(layer) for layer in range(30)]
    points = sum(len(np.asarray(ax.collections[0].get_offsets())) for ax in shown)
    assert points == 12 * 30 - 1  # the failed edit
    drawn = [patch for patch in bars.axes[0].patches if isinstance(patch, Rectangle)]
    widths = [bar.get_width() for bar in drawn[: len(PROBLEMS)]]
    assert widths == pytest.approx(made.regressions.query("score == 'rewrite'")["r2_layer"].tolist())


@pytest.mark.parametrize("number", range(5))
def test_captions_say_over_what_and_on_how_many(made: Made, number: int) -> None:
    plot = made.plots[number]
    assert re.search(r"\b12 facts|for one fact, capital\.\d{3}", plot.caption)
    assert re.search(r"mean|averaged", plot.caption)
    labels = [text.get_text() for text in plot.figure.findobj(Text) if isinstance(text, Text)]
    if plot.name != "r2_bars":
        assert any("counted from 0" in label for label in labels)


def test_the_same_tables_give_the_same_bytes(made: Made, paper: pd.DataFrame, tmp_path: Path) -> None:
    again = draw(made.run, made.scores, made.regressions, paper)
    pictures = {picture.svg.stem: picture for picture in made.pictures}
    assert len(pictures) == len(again)
    for plot in again:
        picture, (svg, png) = pictures[plot.name], plot.save(tmp_path, 60)
        assert svg.read_bytes() == picture.svg.read_bytes(), plot.name
        assert png.read_bytes() == picture.png.read_bytes(), plot.name


def test_vectors_are_as_fine_as_a_screen_and_words_are_whole(tmp_path: Path) -> None:
    figure, ax = plt.subplots()
    ax.plot([0.1234567, 1.7654321], [0, 1])
    ax.set_title("0.123456 of all")
    plt.close(figure)
    svg, _ = Plot(name="fine", title="", caption="", figure=figure).save(tmp_path, 60)
    text = svg.read_text("utf-8")
    assert "0.123456 of all" in text
    places = re.findall(r' d="([^"]*)"', text)
    assert len(places) > 5
    assert all(len(part) <= 2 for place in places for part in re.findall(r"\.(\d+)", place))


def test_the_named_example_fact_is_drawn_and_an_unknown_one_refused(made: Made) -> None:
    plot = figures.trace_heatmap(made.run.trace, made.run.facts, "capital.004")
    assert "capital.004" in plot.caption
    with pytest.raises(UserError, match=r"report\.example_fact is nobody but must be auto or the fact_id"):
        figures.trace_heatmap(made.run.trace, made.run.facts, "nobody")


def test_the_example_fact_is_the_one_with_the_largest_effect_and_not_with_the_largest_loss(made: Made) -> None:
    trace = made.run.trace.copy()
    first = (trace["module"] == "mlp") & (trace["window"] == 5)
    largest, lost = trace["fact_id"] == "capital.003", trace["fact_id"] == "capital.007"
    at = largest & (trace["token_index"] == 1) & (trace["layer"] == 4)
    trace.loc[at, "effect"] = trace["effect"].max() + 0.1
    trace.loc[lost, "p_clean"], trace.loc[lost, "p_corrupt"] = 1.0, 0.0
    other = trace[first].assign(window=9, effect=lambda t: t["effect"] + 5 * (t["fact_id"] == "capital.001"))
    plot = figures.trace_heatmap(pd.concat([trace, other]), made.run.facts, "auto")
    assert "for one fact, capital.003:" in plot.caption
    assert "chosen as the fact with the largest tracing effect" in plot.caption


def test_fitted_lines() -> None:
    x = np.array([0.0, 1.0, 2.0])
    assert fitted_line(x, np.array([0.6, 1.0, 0.8])) == pytest.approx((0.7, 0.1, 0.25))
    assert fitted_line(x, np.full(3, 0.5)) == pytest.approx((0.5, 0.0, 0.0))
    assert fitted_line(np.full(3, 0.1), x) is None
    assert fitted_line(x[:1], x[:1]) is None


def test_means_over_few_facts_have_no_bands() -> None:
    run = make_run(50, 4)
    table = rewrite_by_layer_table(score_table(run.edits, run.facts, run.trace, 0.02), PLAN)
    for shown, phrase in ((table, "bands 95% intervals"), (table.assign(n=39), "no bands, as below 40 facts")):
        plot = figures.rewrite_by_layer(shown, 0.95)
        assert phrase in plot.caption
        boxes = [band.get_paths()[0].get_extents() for band in plot.figure.axes[0].collections if band.get_paths()]
        drawn = [box for box in boxes if box.height > 0]
        assert bool(drawn) == (shown is table)


def test_methods_are_called_as_papers_call_them() -> None:
    names = ("rome", "memit", "kn", "ft", "ft_l", "ft_1", "ft_5")
    assert [method_label(name) for name in names] == ["ROME", "MEMIT", "KN", "FT", "FT+L", "FT-1", "FT-5"]
