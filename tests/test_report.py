"""Page, figures and metrics of a made-up run: what they say, and that they hold and load nothing foreign."""

import base64
import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from pipeline import figures, report
from pipeline.errors import UserError
from pipeline.plots import Plot, fitted_line
from pipeline.profiles import Resampling
from pipeline.regression import REGRESSION_COLUMNS, Design, regression_table
from pipeline.scores import count_edits, rewrite_by_layer_table, score_table, trace_by_layer_table
from pipeline.tables import read_json
from tests.synthetic import PROBLEMS, Run, make_run

PLAN = Resampling(samples=100, permutations=99, confidence=0.95, seed=0)
DESIGN = Design(keep_null_layers=False, folds=5, plan=PLAN)
NASTY = "<script>alert('$x$ & y')</script>"
PAPER = Path(__file__).parents[1] / "data" / "paper" / "hase2023_r2.csv"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A made-up run with its tables, figures and page."""

    run: Run
    scores: pd.DataFrame
    regressions: pd.DataFrame
    counts: pd.DataFrame
    plots: list[Plot]
    pictures: list[report.Picture]
    page: str


@pytest.fixture(scope="module")
def paper() -> pd.DataFrame:
    return report.read_paper(PAPER)


def draw(run: Run, scores: pd.DataFrame, regressions: pd.DataFrame, paper: pd.DataFrame) -> list[Plot]:
    return [
        figures.trace_by_layer(trace_by_layer_table(run.trace, PLAN), 0.95),
        figures.trace_heatmap(run.trace, run.facts, "auto"),
        figures.rewrite_by_layer(rewrite_by_layer_table(scores, PLAN), 0.95),
        figures.score_against_trace(scores, "rewrite", "fraction"),
        figures.r2_bars(regressions, paper),
    ]


@pytest.fixture(scope="module")
def made(paper: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("figures")
    run = make_run(12, 30, subject=NASTY)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    regressions = regression_table(scores, ["rewrite", "overall"], ["fraction"], DESIGN)
    counts = count_edits(run.edits, 0.02)
    plots = draw(run, scores, regressions, paper)
    pictures = [report.Picture(plot.title, plot.caption, *plot.save(folder, 60)) for plot in plots]
    page = report.render(
        title="Title & <b>more</b>",
        regressions=regressions,
        paper=paper,
        facts=run.facts,
        edit_counts=counts,
        pictures=pictures,
        run=report.manifest(
            {"name": "packaged:Model", "layers": 30},
            {"text": NASTY, "condition": [1.5, 2.5]},
            {"seed": 7},
            [{"stage": "trace", "seconds": 12.5}],
        ),
        model_name="Model",
        n_layers=30,
        confidence=0.95,
        permutations=99,
    )
    return Made(
        run=run,
        scores=scores,
        regressions=regressions,
        counts=counts,
        plots=plots,
        pictures=pictures,
        page=page,
    )


class Page(HTMLParser):
    """Tags with their attributes, the nesting's errors, and the visible text."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr", "wbr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.text += " "
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_escaped(made: Made) -> None:
    page = Page(made.page)
    assert NASTY not in made.page
    assert "<script" not in made.page.lower()
    assert f"The capital of {NASTY}0 is the city of" in page.text
    assert "Title & <b>more</b>" in page.text
    assert page.wrong == []
    assert page.open == []


def test_nothing_is_loaded_from_anywhere(made: Made) -> None:
    page = Page(made.page)
    assert "http:" not in made.page.lower()
    assert "https:" not in made.page.lower()
    assert "url(" not in made.page
    assert "@import" not in made.page
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert len(sources) == 5
    assert all(source is not None and source.startswith("data:image/") for source in sources)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form"}


def test_pictures_are_inlined_with_their_captions(made: Made) -> None:
    images = [attributes for tag, attributes in Page(made.page).tags if tag == "img"]
    for image, picture in zip(images, made.pictures, strict=True):
        assert picture.caption in (image["alt"] or "")
        content = base64.b64decode((image["src"] or "").split(",", 1)[1])
        assert content == picture.svg.read_bytes()
        assert picture.png.read_bytes().startswith(b"\x89PNG")
        assert b"<image" in content or content.count(b"<path") > 20


def test_a_heavy_figure_goes_in_as_pixels(made: Made, tmp_path: Path) -> None:
    heavy = tmp_path / "heavy.svg"
    heavy.write_bytes(b"<svg>" + b" " * 1_100_000 + b"</svg>")
    uri = report._data_uri(made.pictures[0]._replace(svg=heavy))
    assert uri.startswith("data:image/png;base64,")
    assert base64.b64decode(uri.split(",", 1)[1]) == made.pictures[0].png.read_bytes()


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
    assert [ax.get_title().split()[0] for ax in shown] == [str(layer) for layer in range(30)]
    points = sum(len(np.asarray(ax.collections[0].get_offsets())) for ax in shown)
    assert points == 12 * 30 - 1  # the failed edit
    drawn = [patch for patch in bars.axes[0].patches if isinstance(patch, Rectangle)]
    widths = [bar.get_width() for bar in drawn[: len(PROBLEMS)]]
    assert widths == pytest.approx(made.regressions.query("score == 'rewrite'")["r2_layer"].tolist())


def test_means_over_few_facts_have_no_bands() -> None:
    table = rewrite_by_layer_table(score_table(*_many(50), 0.02), PLAN)
    for shown, phrase in ((table, "bands 95% intervals"), (table.assign(n=39), "no bands, as below 40 facts")):
        plot = figures.rewrite_by_layer(shown, 0.95)
        assert phrase in plot.caption
        boxes = [band.get_paths()[0].get_extents() for band in plot.figure.axes[0].collections if band.get_paths()]
        drawn = [box for box in boxes if box.height > 0]
        assert bool(drawn) == (shown is table)


def _many(facts: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    run = make_run(facts, 4)
    return run.edits, run.facts, run.trace


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
    for plot, picture in zip(again, made.pictures, strict=True):
        svg, png = plot.save(tmp_path, 60)
        assert svg.read_bytes() == picture.svg.read_bytes(), plot.name
        assert png.read_bytes() == picture.png.read_bytes(), plot.name


def test_the_named_example_fact_is_drawn_and_an_unknown_one_refused(made: Made) -> None:
    plot = figures.trace_heatmap(made.run.trace, made.run.facts, "capital.004")
    assert "capital.004" in plot.caption
    with pytest.raises(UserError, match=r"report\.example_fact is nobody but must be auto or the fact_id"):
        figures.trace_heatmap(made.run.trace, made.run.facts, "nobody")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 1), (3, 8)])
def test_small_and_odd_runs_are_drawn_and_reported(shape: tuple[int, int], paper: pd.DataFrame, tmp_path: Path) -> None:
    run = make_run(*shape)
    scores = score_table(run.edits, run.facts, run.trace, 0.02)
    regressions = regression_table(scores, ["rewrite", "overall", "paraphrase"], ["effect"], DESIGN)
    for plot in draw(run, scores, regressions, paper):
        assert plot.save(tmp_path, 50)[0].stat().st_size > 1000
    text = report.answer(regressions, "Model", 0.95)
    assert ("cannot answer" in text) == (shape in [(1, 1), (2, 3), (4, 1)])
    numbers = report.metrics(regressions, scores, run.facts, count_edits(run.edits, 0.02))
    json.dumps(numbers, allow_nan=False)


def test_several_trace_variants_have_a_panel_and_a_table_each(paper: pd.DataFrame, tmp_path: Path) -> None:
    run = make_run(4, 6)
    trace = pd.concat([run.trace, run.trace.assign(module="attn"), run.trace.assign(window=1)])
    scores = score_table(run.edits, run.facts, trace, 0.02)
    regressions = regression_table(scores, ["overall", "rewrite"], ["fraction", "effect"], DESIGN)
    plot = figures.trace_by_layer(trace_by_layer_table(trace, PLAN), 0.95)
    assert [ax.get_title() for ax in plot.figure.axes if ax.get_visible()] == [
        "attn, window of 5 layers",
        "mlp, window of 1 layer",
        "mlp, window of 5 layers",
    ]
    tables = report.r2_tables(regressions, paper)
    assert len(tables) == 3 * 2 * 2
    assert tables[0]["name"].startswith("Rewrite score, ROME")
    assert len({table["name"] for table in tables}) == 12
    assert all(len(table["rows"]) == 5 for table in tables)


def regressions_with(**columns: Any) -> pd.DataFrame:
    plain = dict.fromkeys(REGRESSION_COLUMNS, 0.5)
    rows = pd.DataFrame({"problem": ["error_injection", "fact_erasure"]}).assign(
        **plain | {
            "problem": ["error_injection", "fact_erasure"], "method": "rome", "score": "rewrite", "trace_module": "mlp",
            "trace_window": 5, "trace_measure": "fraction", "n_facts": 100, "n_relations": 4, "r2_layer": [0.9, 0.8],
            "r2_diff": [0.02, 0.01], "chance": [0.001, 0.002], "gain_bound": [0.04, 0.03],
        }
    )  # fmt: skip
    return rows.assign(**columns)


def test_the_answer_is_made_of_the_numbers() -> None:
    text = report.answer(regressions_with(), "Model", 0.95)
    assert "In Model, edited with ROME on 100 facts" in text
    assert "80 to 90% of the variance of the rewrite score (error injection and fact erasure)" in text
    assert "adds 1.0 to 2.0 points" in text
    assert "would add 0.1 to 0.2" in text
    assert "not shown to be more than chance for any problem (smallest corrected p 0.5)" in text
    assert "not shown to go better, or worse, at the layers where it traces higher" in text
    assert "above 3.0 to 4.0 points is ruled out at 95%" in text


def test_a_gain_is_not_said_to_be_a_layer() -> None:
    text = report.answer(regressions_with(permutation_holm=[0.01, 0.2]), "Model", 0.95)
    assert "more than chance for error injection; this may be that some facts are easier" in text
    assert "not shown to go better" in text
    text = report.answer(regressions_with(within_holm=[0.01, 0.02], within_slope=[-0.3, 0.2]), "Model", 0.95)
    assert "higher than its relation does, better for fact erasure and worse for error injection" in text


def test_the_answer_says_nothing_by_what_is_withheld() -> None:
    sure = {"permutation_holm": 0.001, "within_holm": 0.001, "permutation_pvalue": 0.001, "f_pvalue": 0.0}
    text = report.answer(regressions_with(n_facts=5, **sure), "Model", 0.95)
    assert "this decides nothing" in text
    assert "ruled out" not in report.answer(regressions_with(n_facts=12, **sure), "Model", 0.95)
    nothing = dict.fromkeys(["r2_layer", "r2_diff", "chance"], np.nan)
    text = report.answer(regressions_with(n_facts=2, **nothing), "Model", 0.95)
    assert "cannot answer the question: with 2 facts" in text


def test_the_papers_figures_stand_beside_ours(made: Made, paper: pd.DataFrame) -> None:
    table = report.r2_tables(made.regressions, paper)[0]
    row = next(row for row in table["rows"] if row["ours"]["problem"] == "error_injection")
    assert (row["paper"]["r2_layer"], row["paper"]["r2_trace"], row["paper"]["r2_both"]) == (
        0.947,
        0.016,
        0.948,
    )
    assert row["paper"]["p_value"] == "<1e-4"
    ours = made.regressions.query("problem == 'error_injection' and score == 'rewrite'").iloc[0]
    assert row["ours"]["r2_layer"] == ours["r2_layer"]
    text = Page(made.page).text
    assert "0.947" in text
    assert f"{ours['r2_layer']:.3f}" in text


def test_means_over_all_prompts_have_no_row_of_the_paper(paper: pd.DataFrame) -> None:
    for score, there in (
        ("paraphrase", False),
        ("overall", False),
        ("neighborhood", False),
        ("paraphrase_first", True),
    ):
        assert report.r2_tables(regressions_with(score=score), paper)[0]["paper"] == there, score


def test_unknown_cells_of_the_paper_are_dashes(paper: pd.DataFrame) -> None:
    rows = regressions_with(method="memit", score="neighborhood_first", problem=["fact_forcing", "fact_amplification"])
    first, second = report.r2_tables(rows, paper)[0]["rows"]
    assert first["paper"]["r2_layer"] is None
    assert second["paper"]["r2_layer"] == 0.035
    assert second["paper"]["r2_trace"] is None
    assert (report._r2(None), report._p(float("nan")), report._p(0.00001)) == ("–", "–", "<1e-4")


def test_facts_and_reasons_are_listed(made: Made) -> None:
    text = re.sub(r"\s+", " ", Page(made.page).text)
    assert "12 of 52 candidate facts" in text
    assert "the model continues otherwise 28" in text
    assert "known, but beyond facts.count 12" in text
    assert all(f"capital.{i:03d}" in text for i in range(12))
    assert "dropped.0" not in text
    assert "error injection rome scored 359 12" in text
    assert "error injection rome no score: the loss is not finite 1 1" in text


def test_the_manifest_is_on_the_page(made: Made) -> None:
    text = re.sub(r"\s+", " ", Page(made.page).text)
    for told in (
        "model.layers 30",
        "statistics.condition [1.5, 2.5]",
        "params.seed 7",
        "stages.trace.seconds 12.5",
    ):
        assert told in text
    assert re.search(r"versions\.numpy \d+\.\d+", text)


def test_metrics_are_nested_numbers(made: Made) -> None:
    numbers = report.metrics(made.regressions, made.scores, made.run.facts, made.counts)
    assert numbers["facts"] == {"candidates": 52, "used": 12}
    assert numbers["edits"] == {"scored": 5 * 360 - 1, "left_out": 1}
    means = made.scores.query("problem == 'fact_erasure'").groupby("layer")["rewrite"].mean()
    erasure = numbers["rome"]["fact_erasure"]
    assert erasure["rewrite"]["best_layer"] == means.idxmax()
    assert isinstance(erasure["rewrite"]["best_layer"], int)
    assert erasure["rewrite"]["best"] == pytest.approx(means.max())
    row = made.regressions.query("problem == 'fact_erasure' and score == 'rewrite'").iloc[0]
    assert erasure["rewrite_r2"]["gain_high"] == pytest.approx(row["gain_high"])

    def leaves(tree: dict[str, Any]) -> list[Any]:
        return [leaf for value in tree.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]

    assert all(isinstance(leaf, int | float) for leaf in leaves(numbers))


def test_csv_has_ten_digits_and_reads_back(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "new" / "regressions.csv"
    report.save_csv(path, made.regressions)
    back = pd.read_csv(path)
    pd.testing.assert_frame_equal(back, made.regressions, rtol=1e-9, check_dtype=False)
    assert list(back.columns) == list(made.regressions.columns)
    assert [file.name for file in path.parent.iterdir()] == ["regressions.csv"]


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"paper\.csv: no such file"):
        report.read_paper(tmp_path / "paper.csv")
    (tmp_path / "paper.csv").write_text("score,problem\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has no column method but must have"):
        report.read_paper(tmp_path / "paper.csv")
    with pytest.raises(UserError, match=r"model\.json: no such file; run dvc repro"):
        read_json(tmp_path / "model.json")
    (tmp_path / "model.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.json: is not JSON"):
        read_json(tmp_path / "model.json")
    assert report.read_timings(tmp_path / "timings") == []


def test_fitted_lines() -> None:
    x = np.array([0.0, 1.0, 2.0])
    assert fitted_line(x, np.array([0.6, 1.0, 0.8])) == pytest.approx((0.7, 0.1, 0.25))
    assert fitted_line(x, np.full(3, 0.5)) == pytest.approx((0.5, 0.0, 0.0))
    assert fitted_line(np.full(3, 0.1), x) is None
    assert fitted_line(x[:1], x[:1]) is None
