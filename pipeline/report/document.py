"""What the report says, as plain data: the answer with its figure, table and doubts, then the sections, in their order.

The page (page.py) and reports/report.md (markdown.py) show the same document. Every sentence with a result is put
together from the tables, so that another run's report says what that run found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.report import account, collapse, comparison, fractional, layers
from pipeline.report.answer import answer
from pipeline.report.plots import Plot
from pipeline.report.r2 import all_table, headline_tables, r2_tables
from pipeline.report.section import Section
from pipeline.report.sources import Sources

_CANNOT = "This run cannot say where to edit: no method has scores of two facts at one layer."
_QUESTION = (
    "The question is that of Hase et al. 2023, “Does Localization Inform Editing?”: causal tracing says at which "
    "layers a model recovers a fact; does editing succeed at those layers? Rows of each regression are facts × edited "
    "layers."
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A report: `answer` is one sentence, `opening` the figure and tables that it rests on, `sure` how far it goes."""

    title: str
    answer: str
    opening: Section
    sure: Section
    sections: Sequence[Section]

    @property
    def all(self) -> list[Section]:
        """Every section, in the order of the page."""
        return [self.opening, self.sure, *self.sections]

    @property
    def plots(self) -> list[Plot]:
        """Every figure, in the order of the page."""
        return [plot for section in self.all for plot in section.plots]


def document(
    run: Sources,
    *,
    title: str,
    plots: Iterable[Plot | None],
    sections: Mapping[str, Mapping[str, Any]],
    more: Sequence[Section],
    edit_counts: pd.DataFrame,
    targets: pd.DataFrame,
    manifest: Mapping[str, Any],
    confidence: float,
    permutations: int,
) -> Document:
    """The report of a run.

    Parameters: what earlier stages left, the heading, the figures, by their names, what `section` of layers.py,
    comparison.py and collapse.py says ("layers", "methods", "collapse"), the sections of `pipeline.report.extras`, the
    counts of `pipeline.analysis.scores.count_edits`, the shares of `pipeline.analysis.targets`, the manifest, the
    intervals' confidence and the number of dealings of traces.
    """
    drawn = {plot.name: plot for plot in plots if plot is not None}
    told, sure, name = dict(sections["layers"]), f"{confidence:.0%}", run.model["name"].removeprefix("packaged:")
    found = answer(run.regressions, name, confidence, permutations)
    tables = r2_tables(run.regressions, run.paper)

    def figures(*names: str) -> list[Plot]:
        return [drawn[one] for one in names if one in drawn]

    return Document(
        title=title,
        answer=told["first"] or found,
        opening=Section(
            anchor="where",
            title="Where to edit",
            paragraphs=[] if told["rows"] else [_CANNOT],
            tables=layers.tables(told, permutations),
            plots=figures("layers"),
        ),
        sure=Section(
            anchor="sure",
            title="How sure this is",
            tables=fractional.tables(run.fractional, run.regressions, sure),
            points=[
                *layers.sure(told),
                *account.trust(run.regressions),
                *fractional.sentence(run.fractional, run.regressions),
            ],
        ),
        sections=[
            Section(
                anchor="r2",
                title="What the layer explains, and what the trace adds",
                paragraphs=[_QUESTION, found],
                tables=headline_tables(tables[0], sure),
                plots=figures("r2_bars", "score_against_trace", "correlation_by_layer"),
                points=_terms(sure, permutations),
            ),
            Section(
                anchor="regressions",
                title="All regressions",
                paragraphs=[f"{len(run.regressions)} regressions, a row each; the columns are explained above."],
                tables=[all_table(tables, sure)],
            ),
            Section(
                anchor="tracing",
                title="Where facts are restored",
                plots=figures("trace_by_layer", "trace_peaks", "trace_heatmap"),
            ),
            Section(
                anchor="editing", title="Where edits succeed", plots=figures("rewrite_by_layer", "scores_by_layer")
            ),
            *comparison.sections(dict(sections["methods"]), sure),
            collapse.as_section(sections["collapse"], drawn.get("collapse_by_layer")),
            *more,
            account.facts_section(run.facts, run.left_out),
            account.edits_section(edit_counts, targets),
            account.run_section(manifest),
        ],
    )


def _terms(confidence: str, permutations: int) -> list[str]:
    return [
        "**layer**, **trace** and **both** are R² of score ~ layer, score ~ trace and score ~ layer × trace (a line of "
        "its own in each layer); **added** is both minus layer, in this sample.",
        "**Null layers** are those where the method cannot reach the answer (ROME in the last block): scores are 0 "
        "there for every fact, which the layer then explains; the paper's grid holds one such block (27 of GPT-J).",
        "**by chance** is what a trace dealt to facts at random would add, **gain** what is added beyond it, with an "
        "interval for facts of these relations that may lie below 0, and **at most** the largest gain that these facts "
        f"still allow ({confidence}, one-sided). **p**: the share of {permutations} dealings of whole traces to facts "
        "of the same relation that add as much.",
        "**Within a fact**: the change of the score for a trace higher by 1, between the layers of a fact, beyond what "
        "its relation shows at each layer.",
        "**Held-out facts**: what one slope of the trace adds to R² on facts that the fit has not seen; below 0 if it "
        "misleads. A dash: not defined, not known, or not shown to hold.",
    ]
