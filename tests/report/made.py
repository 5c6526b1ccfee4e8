"""A made-up run with its tables, figures and page, for the tests of the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.analysis.agreement import AGREEMENT_COLUMNS
from pipeline.analysis.collapse import collapse_table, r2_without_collapsed, with_harm
from pipeline.analysis.comparison import comparison_table
from pipeline.analysis.fractional import fractional_table
from pipeline.analysis.layers import layer_table, traces
from pipeline.analysis.profiles import Resampling
from pipeline.analysis.regression import Design, regression_table
from pipeline.analysis.scores import count_edits, rewrite_by_layer_table, score_table, trace_by_layer_table
from pipeline.analysis.targets import function_word_targets
from pipeline.report import collapse, comparison, figures, layers, sources
from pipeline.report import page as report
from pipeline.report.document import Document, document
from pipeline.report.explorer import Explorer, explorer
from pipeline.report.manifest import manifest
from pipeline.report.plots import Plot
from tests.analysis.synthetic import Run, make_run

PLAN = Resampling(samples=100, permutations=99, confidence=0.95, seed=0)
DESIGN = Design(keep_null_layers=False, folds=5, plan=PLAN)
NASTY = "</script><script>alert('$x$ & y')</script>"
LEFT_OUT = pd.DataFrame(
    {"record": ["3", "5", "8"], "source_file": "facts.json", "reason": ["subject is empty", f"{NASTY} 0", f"{NASTY} 0"]}
)
PAPER = Path(__file__).parents[2] / "data" / "paper" / "hase2023_r2.csv"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A made-up run with its tables, figures and page."""

    run: Run
    scores: pd.DataFrame
    regressions: pd.DataFrame
    counts: pd.DataFrame
    plots: list[Plot]
    pictures: list[report.Picture]
    document: Document
    page: str


@pytest.fixture(scope="session")
def paper() -> pd.DataFrame:
    return sources.read_paper(PAPER)


def scored(run: Run) -> pd.DataFrame:
    """scores.parquet of a run."""
    return with_harm(score_table(run.edits, run.facts, run.trace, 0.02), run.edits, 0.5)


def told(run: Run, scores: pd.DataFrame) -> dict[str, Any]:
    """The page's section on edits that disable the model."""
    r2 = r2_without_collapsed(scores, "rewrite", "fraction", keep_null_layers=False)
    return collapse.section(collapse_table(scores, run.edits), r2, 0.5)


def where(scores: pd.DataFrame) -> pd.DataFrame:
    """reports/layers.csv of a run."""
    found = traces(scores, ["fraction"])
    return layer_table(scores, ["rewrite", "overall"], found, PLAN, keep_null_layers=False)


def sections(run: Run, scores: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """What stands in the page beside the regressions."""
    return {
        "layers": layers.section(where(scores), 0.95),
        "methods": comparison.section(comparison_table(scores, PLAN)),
        "collapse": told(run, scores),
    }


def cheaper(run: Run) -> pd.DataFrame:
    """localizers.parquet of a run: one that knows the trace, and one that only sees how deep a layer is."""
    largest = run.trace.groupby(["fact_id", "layer"], as_index=False)["effect"].max()
    values = {"attribution_patching_w5": largest["effect"] / 2, "gradient_norm": 3.0 - largest["layer"]}
    tables = [
        largest[["fact_id", "layer"]].assign(localizer=name, value=value.astype(float))
        for name, value in values.items()
    ]
    return pd.concat(tables, ignore_index=True)[["fact_id", "localizer", "layer", "value"]]


def explored(run: Run, scores: pd.DataFrame) -> Explorer:
    """The fact explorer's data of a run."""
    return explorer(run.facts, run.trace, run.edits, scores, cheaper(run))


def draw(run: Run, scores: pd.DataFrame, regressions: pd.DataFrame, paper: pd.DataFrame) -> list[Plot]:
    return [
        figures.trace_by_layer(trace_by_layer_table(run.trace, PLAN), 0.95),
        figures.trace_heatmap(run.trace, run.facts, "auto"),
        figures.rewrite_by_layer(rewrite_by_layer_table(scores, PLAN), 0.95),
        figures.score_against_trace(scores, "rewrite", "fraction"),
        figures.r2_bars(regressions, paper),
    ]


def sources_of(run: Run, scores: pd.DataFrame, regressions: pd.DataFrame) -> sources.Sources:
    """What the page is made from."""
    return sources.Sources(
        facts=run.facts,
        trace=run.trace,
        scores=scores,
        edits=run.edits,
        regressions=regressions,
        fractional=fractional_table(scores, ["rewrite"], ["fraction"], DESIGN),
        choices=where(scores),
        agreement=pd.DataFrame(columns=list(AGREEMENT_COLUMNS)),
        localizers=cheaper(run),
        paper=sources.read_paper(PAPER),
        left_out=LEFT_OUT,
        model={"name": "packaged:Model", "layers": 30, "fingerprint": "f"},
        statistics={},
        timings=[],
    )


def composed(run: Run, scores: pd.DataFrame, regressions: pd.DataFrame, plots: Sequence[Plot | None]) -> Document:
    """The report of a run."""
    return document(
        sources_of(run, scores, regressions),
        title="Title & <b>more</b>",
        plots=plots,
        edit_counts=count_edits(run.edits, 0.02),
        targets=function_word_targets(run.edits),
        sections=sections(run, scores),
        more=[],
        manifest=manifest(
            {"name": "packaged:Model", "layers": 30},
            {"text": NASTY, "condition": [1.5, 2.5]},
            {"seed": 7, "edit": {"methods": ["rome"], "problems": ["fact_erasure"]}},
            [{"stage": "trace", "seconds": 12.5, "versions": {"torch": "2.0"}}],
        ),
        confidence=0.95,
        permutations=99,
    )


@pytest.fixture(scope="session")
def made(paper: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("figures")
    run = make_run(12, 30, subject=NASTY)
    scores = scored(run)
    regressions = regression_table(scores, ["rewrite", "overall"], ["fraction"], DESIGN)
    counts = count_edits(run.edits, 0.02)
    plots = draw(run, scores, regressions, paper)
    told = composed(run, scores, regressions, plots)
    pictures = report.save(told.plots, folder, 60)
    page = report.render(told, pictures, explored(run, scores), folder)
    return Made(
        run=run,
        scores=scores,
        regressions=regressions,
        counts=counts,
        plots=plots,
        pictures=pictures,
        document=told,
        page=page,
    )


class Page(HTMLParser):
    """Tags with their attributes, the nesting's errors, and the visible text; `scripts` in their order."""

    VOID = frozenset({"source", "meta", "img", "br", "link", "input", "hr", "wbr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs).get("id"), ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.text += " "
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data
        elif self.open[-1] == "script":
            name, code = self.scripts[-1]
            self.scripts[-1] = name, code + data
