"""Figures by layer show their tables, at both widths, and the page gives a narrow screen the narrow one."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.analysis.by_layer import by_layer_tables
from pipeline.report import by_layer, page
from pipeline.report.plots import NARROW, Plot, both_widths, leftmost, narrow, panels
from tests.report.made import PLAN, Made, explored


@pytest.fixture(scope="module")
def tables(made: Made) -> dict[str, pd.DataFrame]:
    return by_layer_tables(
        made.scores, made.run.trace, ["rewrite", "overall"], ["fraction"], PLAN, keep_null_layers=False
    )


@pytest.fixture(scope="module")
def drawn(tables: dict[str, pd.DataFrame]) -> list[Plot]:
    correlation = by_layer.correlation_by_layer(tables["correlation_by_layer"], "rewrite", "fraction")
    assert correlation is not None
    return [
        by_layer.trace_peaks(tables["trace_peaks"]),
        by_layer.scores_by_layer(tables["scores_by_layer"], 0.95),
        correlation,
    ]


def visible(figure: Figure | None) -> list[Axes]:
    assert figure is not None
    return [ax for ax in figure.axes if ax.get_visible()]


def test_they_show_the_tables(drawn: list[Plot], tables: dict[str, pd.DataFrame]) -> None:
    peaks, scores, correlation = drawn
    bars = [one for one in peaks.figure.axes[0].patches if isinstance(one, Rectangle)]
    assert [bar.get_height() for bar in bars] == pytest.approx(tables["trace_peaks"]["share"].tolist())
    assert sum(bar.get_height() for bar in bars[:30]) == pytest.approx(1)
    titles = ["paraphrase, ROME", "neighborhood, ROME", "overall, ROME"]
    assert [ax.get_title() for ax in visible(scores.figure)] == titles
    own = tables["scores_by_layer"].query("score == 'neighborhood' and problem == 'error_injection'")
    line = scores.figure.axes[1].get_lines()[0]
    assert np.asarray(line.get_ydata(), dtype=float) == pytest.approx(own["mean"].to_numpy())
    r = tables["correlation_by_layer"].query("score == 'rewrite' and problem == 'error_injection'")["r"]
    line = correlation.figure.axes[0].get_lines()[0]
    assert np.asarray(line.get_ydata(), dtype=float) == pytest.approx(r.to_numpy(), nan_ok=True)
    assert len(correlation.figure.axes[0].get_lines()) == 5 + 3  # the problems, 0, and what chance may reach
    for plot in drawn:
        assert re.search(r"\b12 facts", plot.caption)
        assert plot.data is not None


def test_a_narrow_page_has_the_same_panels_below_each_other(drawn: list[Plot]) -> None:
    for plot in drawn:
        assert plot.narrow is not None
        assert plot.narrow.get_figwidth() == NARROW
        assert [ax.get_title() for ax in visible(plot.narrow)] == [ax.get_title() for ax in visible(plot.figure)]
        for ax, again in zip(visible(plot.figure), visible(plot.narrow), strict=True):
            for line, other in zip(ax.get_lines(), again.get_lines(), strict=True):
                np.testing.assert_array_equal(line.get_ydata(), other.get_ydata())
        assert len({round(ax.get_position().x0, 3) for ax in visible(plot.narrow)}) == 1
        assert all(ax.get_ylabel() for ax in visible(plot.narrow))
    assert not narrow()


def test_nothing_to_draw_twice_is_nothing() -> None:
    def nothing() -> Plot | None:
        return None

    assert both_widths(nothing)() is None

    def fail() -> Plot:
        if narrow():
            raise ValueError("cannot be drawn so")
        figure, axes = panels(3, columns=2, width=4, height=2)
        assert list(leftmost(axes, 2)) == [axes[0], axes[2]]
        return Plot(name="a", title="A", caption="", figure=figure)

    with pytest.raises(ValueError, match="cannot be drawn so"):
        both_widths(fail)()
    assert not narrow()  # also after a failure


def test_no_correlation_no_figure(tables: dict[str, pd.DataFrame]) -> None:
    nothing = tables["correlation_by_layer"].assign(r=np.nan)
    assert by_layer.correlation_by_layer(nothing, "rewrite", "fraction") is None


def test_the_page_has_both_forms_and_old_ones_go(made: Made, drawn: list[Plot], tmp_path: Path) -> None:
    (tmp_path / "gone-narrow.svg").write_text("<svg/>")
    saved = page.save(drawn, tmp_path, 40)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"{plot.name}{end}" for plot in drawn for end in (".svg", ".png", "-narrow.svg"))
    again = page.save(drawn[:1], tmp_path / "again", 40)
    assert again[0].narrow is not None
    assert saved[0].narrow is not None
    assert again[0].narrow.read_bytes() == saved[0].narrow.read_bytes()
    text = page.render(made.document, made.pictures, explored(made.run, made.scores), tmp_path)
    assert text.count('<source media="(max-width: 44rem)" srcset="data:image/svg+xml;base64,') == 5
    assert text.count('<img class="fits" src="data:image/svg+xml;base64,') == 5
    plain = [picture._replace(narrow=None) for picture in made.pictures]
    alone = page.render(made.document, plain, explored(made.run, made.scores), tmp_path)
    assert "<source" not in alone
    assert alone.count("<img src=") == 5
