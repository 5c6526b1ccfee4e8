"""The report opens with its answer, and each section, table and figure can be linked to and has its data beside it."""

import base64
import gzip
import io
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pipeline.report import layers
from pipeline.report import page as report
from pipeline.report.plots import Plot
from pipeline.report.r2 import all_table, r2_tables
from pipeline.report.section import Section, Table, chance, number, spread, with_interval
from pipeline.tables import write_csv
from tests.report.made import Made, Page, composed, explored, where


def test_the_page_opens_with_sentence_figure_table_and_doubts(made: Made, tmp_path: Path) -> None:
    plots = [*made.plots, layers.layers_plot(where(made.scores), 0.95)]
    told = composed(made.run, made.scores, made.regressions, plots)
    page = report.render(told, report.save(told.plots, tmp_path, 50), explored(made.run, made.scores), tmp_path)
    body = page.split("<body>")[1]
    places = [
        body.index(mark)
        for mark in (
            'class="answer"',
            "<nav",
            'id="where"',
            "<figure",
            "<table",
            'id="sure"',
            'id="explorer"',
            'id="r2"',
        )
    ]
    assert places == sorted(places)
    assert told.answer.count(". ") == 0
    assert [plot.name for plot in told.opening.plots] == ["layers"]
    assert "it may be chance, and below 40 no interval is given" in told.sure.points[0]
    assert [plot.name for plot in told.plots][:2] == ["layers", "r2_bars"]
    assert len(told.plots) == 6


def test_every_section_has_an_anchor_that_the_contents_link_to(made: Made) -> None:
    page = Page(made.page)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    contents = re.findall(r'<li><a href="#([^"]+)">', made.page.split("<nav")[1].split("</nav>")[0])
    assert contents == [*(section.anchor for section in made.document.all[:2]), "explorer",
                        *(section.anchor for section in made.document.sections), "data"]  # fmt: skip
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a" and "href" in attributes]
    assert {link for link in links if (link or "").startswith("#")} <= {f"#{one}" for one in ids}
    assert re.findall(r"<section id", made.page) == ["<section id"] * len(contents)


def test_data_stands_once_in_the_page_and_is_linked_to(made: Made, tmp_path: Path) -> None:
    write_csv(made.regressions, tmp_path / "regressions.csv")
    page = report.render(made.document, made.pictures, explored(made.run, made.scores), tmp_path)
    files = dict(re.findall(r'<a id="([^"]+)" href="data:application/gzip;base64,([^"]+)"', page))
    assert set(files) == {
        "data-regressions", "data-figure-trace_by_layer", "data-figure-trace_heatmap", "data-figure-rewrite_by_layer",
        "data-figure-score_against_trace",  # and R²'s bars are drawn from regressions.csv, which is there once
    }  # fmt: skip
    assert gzip.decompress(base64.b64decode(files["data-regressions"])) == (tmp_path / "regressions.csv").read_bytes()
    drawn = pd.read_csv(io.BytesIO(base64.b64decode(files["data-figure-score_against_trace"])), compression="gzip")
    scores = made.scores.query("problem == 'error_injection'").dropna(subset=["rewrite", "fraction"])
    assert drawn["rewrite"].to_numpy() == pytest.approx(scores["rewrite"].to_numpy(), rel=1e-9)
    assert page.count('class="data" href="#data-regressions"') == 4
    assert page.count(">Data of this figure</a>") == 5
    assert "reports/layers.csv has the numbers." in page  # it is not there, and so not linked to


def test_all_regressions_are_rows_of_one_table(made: Made, paper: pd.DataFrame) -> None:
    table = all_table(r2_tables(made.regressions, paper), "95%")
    assert len(table.rows) == len(made.regressions) == 10
    assert all(len(row) == len(table.head) == sum(n for _, n in table.groups) for row in table.rows)
    assert table.rows[0][:4] == ["error injection", "rewrite", "ROME", "fraction, mlp, window 5"]
    assert table.rows[0][4] == number(made.regressions["r2_layer"].iloc[0])
    assert {row[1] for row in table.rows} == {"rewrite", "overall"}
    assert made.page.count(" data-sortable data-filter=") == 2  # this one, and the facts


def test_a_foreign_section_is_shown_in_the_same_form(made: Made, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("a\n1\n")
    plot = Plot(name="more", title="A figure", caption="Of nothing.", figure=made.plots[0].figure)
    section = Section(
        anchor="maps",
        title="Maps <i>",
        paragraphs=["It says **this** & that."],
        tables=[Table(title="T", head=["a", "b"], rows=[["x", "1 to 2"]], note="**n**", source="more.csv", wraps=True)],
        plots=[plot],
        points=["one"],
    )
    told = replace(made.document, sections=[section])
    page = report.render(told, report.save(told.plots, tmp_path, 50), explored(made.run, made.scores), tmp_path)
    part = page.split('<section id="maps">')[1].split("</section>")[0]
    assert "<h2>Maps &lt;i&gt;</h2>" in part
    assert "<p>It says <b>this</b> &amp; that.</p>" in part
    assert 'href="#data-more">Data of this table (more.csv)</a>' in part
    assert 'src="data:image/svg+xml;base64,' in part
    assert Page(page).wrong == []


def test_numbers_are_written_alike() -> None:
    nan = float("nan")
    assert (number(-1e-9), number(nan), number(None), number(0.12345, 2)) == ("0.000", "–", "–", "0.12")
    assert (spread(0.1, 0.2), spread(nan, 0.2), spread(None, None)) == ("0.100 to 0.200", "–", "–")
    assert (with_interval(0.5, 0.4, 0.6), with_interval(0.5, None, None)) == ("0.500 (0.400 to 0.600)", "0.500")
    assert (chance(0.00001), chance(0.5), chance(None)) == ("<1e-4", "0.5000", "–")


def test_bold_is_the_only_markup_of_a_text() -> None:
    assert str(report._marked("a **b** <i>")) == "a <b>b</b> &lt;i&gt;"
    assert str(report._marked("**<b>** c")) == "<b>&lt;b&gt;</b> c"
    assert str(report._marked("2 ** 3")) == "2 ** 3"
    for cell in ("0.1", "-0.063 (0.7326)", "<1e-4", "10% (10%)", "–", "-0.1 to 0.2", "3.0e-04", "29"):
        assert report._numeric(cell), cell
    for cell in ("ROME", "fact erasure", "x 1", "1st"):
        assert not report._numeric(cell), cell
