"""The report's section on what edits leave of what the model had to say of a subject."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.analysis import trust
from pipeline.analysis.essence import ESSENCE_COLUMNS, R2_COLUMNS
from pipeline.report.plots import Plot, bands, both_widths, facts_phrase, leftmost, legend_below, panels, style, words
from pipeline.report.section import Section, Table, number
from pipeline.report.sources import read_made
from pipeline.words import method_label

_NAMES = ["method", "problem"]


def section(reports: Path, data: Path, confidence: float) -> Section:
    """The section, from reports/essence.csv and reports/essence_r2.csv. Raises UserError where one is damaged."""
    table = read_made(reports / "essence.csv", ESSENCE_COLUMNS)
    r2 = read_made(reports / "essence_r2.csv", R2_COLUMNS)
    return Section(
        anchor="essence",
        title="What edits leave of a subject",
        paragraphs=[_meaning(), _found(table)],
        tables=[_table(table), _r2_table(r2)],
        plots=[_plot(table, confidence)] if table["essence"].notna().any() else [],
    )


def _meaning() -> str:
    return (
        "Before the edit the model wrote texts that begin with the subject and “is a”; their perplexity is taken "
        "before and after. The essence score of Hase et al. is 1 less a fifth of its rise, and 0 from a rise of 5 on. "
        "An edit that does nothing scores 1: the score tells what is harmed, never what is achieved."
    )


def _found(table: pd.DataFrame) -> str:
    """What the numbers say: where least is left, and where most is."""
    known = table.dropna(subset=["essence"])
    if known.empty:
        return "No edit was made, so nothing was measured."
    means = known.groupby(_NAMES, sort=False)["essence"].mean()
    worst = known.loc[known["essence"].idxmin()]
    low, high = number(means.min()), number(means.max())
    span = (
        f"is {low}" if low == high else f"goes from {low} ({_who(means.idxmin())}) to {high} ({_who(means.idxmax())})"
    )
    return (
        f"Over all layers the mean score {span}. The least is left by edits at layer {worst['layer']:.0f} for "
        f"{_who((worst['method'], worst['problem']))}: {number(worst['essence'])} over "
        f"{facts_phrase(int(worst['n_facts']))}, where the median perplexity is {number(worst['perplexity_pre'], 2)} "
        f"before and {number(worst['perplexity_post'], 2)} after the edit."
    )


def _who(names: Any) -> str:
    method, problem = names
    return f"{words(str(problem))}, {method_label(str(method))}"


def _table(table: pd.DataFrame) -> Table:
    rows = []
    for names, group in table.groupby(_NAMES, sort=False):
        known = group.dropna(subset=["essence"])
        if known.empty:
            rows.append([_who(names), "0", *["–"] * 6])
            continue
        least = known.loc[known["essence"].idxmin()]
        rows.append(
            [
                _who(names), str(int(known["n_facts"].max())), number(known["essence"].mean()),
                number(known["perplexity_pre"].median(), 2), number(known["perplexity_post"].median(), 2),
                str(int(least["layer"])), number(least["essence"]), number(least["perplexity_post"], 2),
            ]
        )  # fmt: skip
    return Table(
        title="Essence score, and perplexity before and after",
        head=["problem, method", "facts", "score", "before", "after", "layer", "score", "perplexity after"],
        groups=[("", 2), ("over all layers", 3), ("where least is left", 3)],
        rows=rows,
        note="Scores are means over facts, perplexities medians; over all layers, of these the mean and the median. A "
        "block from which nothing leads to the texts' tokens scores 1.",
        source="essence.csv",
    )


def _r2_table(r2: pd.DataFrame) -> Table:
    first = r2.iloc[0]
    trace = ["trace_module", "trace_window", "trace_measure"]
    shown = r2[(r2[trace] == first[trace]).all(axis=1)]
    return Table(
        title="What explains the essence score: R²",
        head=["problem, method", "facts", "layer", "trace", "both", "difference", "chance"],
        rows=[
            [_who((row.method, row.problem)), str(row.n_facts)]
            + [number(value) for value in (row.r2_layer, row.r2_trace, row.r2_both, row.r2_diff, row.chance)]
            for row in shown.itertuples()
        ],
        note=f"Trace: {words(str(first['trace_measure']))}, {first['trace_module']}, window {first['trace_window']}. "
        "Chance: what a trace dealt to facts at random adds. An en dash: too few facts, or a score that does not vary.",
        source="essence_r2.csv",
    )


@both_widths
def _plot(table: pd.DataFrame, confidence: float) -> Plot:
    shown = table.assign(n=table["n_facts"], problem=table["problem"].map(words))
    problems, methods = list(dict.fromkeys(shown["problem"])), list(shown.groupby("method", sort=False))
    with style():
        figure, axes = panels(len(methods), columns=2, width=7.6 if len(methods) == 1 else 4.6, height=3.8)
        for ax, (method, group) in zip(axes, methods, strict=True):
            bands(ax, trust.bands(group), "problem", problems, "essence")
            ax.set(title=method_label(str(method)), xlabel="edited layer (counted from 0)", ylim=(-0.03, 1.03))
        for ax in leftmost(axes, 2):
            ax.set_ylabel("essence score (0 to 1)")
        legend_below(figure, axes[0])
    low, high = int(shown["n"].min()), int(shown["n"].max())
    over = facts_phrase(high) if low == high else f"{low} to {high} facts"
    return Plot(
        name="essence_by_layer",
        title="What edits leave of a subject, by layer",
        figure=figure,
        data=table,
        caption=(
            f"Essence score by edited layer: means over {over}; {trust.bands_phrase(shown, confidence)}. An edit that "
            "does nothing scores 1. Failed edits are not in the means."
        ),
    )
