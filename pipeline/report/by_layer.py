"""Figures of Hase et al. 2023 by layer, beside those of pipeline.report.figures: where tracing peaks, all scores, and
how scores and traces go together in each layer."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from pipeline.analysis import trust
from pipeline.report.figures import EDIT_LAYER, MEASURES, layers_of
from pipeline.report.plots import (
    Plot,
    bands,
    both_widths,
    facts_phrase,
    leftmost,
    legend_below,
    panels,
    style,
    words,
)
from pipeline.words import method_label

_LINES = {"any": "any token of the prompt", "last_subject": "the last subject token"}
_SURE = 1.96  # standard errors on either side of 0 that hold 95 % of a normal variable


@both_widths
def trace_peaks(table: pd.DataFrame) -> Plot:
    """Share of facts by the layer with their largest tracing effect, a panel for each module and window.

    `table` comes from `pipeline.analysis.by_layer.trace_peaks_table`.
    """
    variants = list(table.groupby(["module", "window"], sort=False))
    colors = sns.color_palette("colorblind")
    lines = list(dict.fromkeys(table["tokens"]))
    with style():
        one = len(variants) == 1
        figure, axes = panels(len(variants), columns=2, width=7.6 if one else 4.6, height=2.8)
        for ax, ((module, window), group) in zip(axes, variants, strict=True):
            for i, tokens in enumerate(lines):
                at = group[group["tokens"] == tokens]
                ax.bar(
                    at["layer"] + 0.4 * (i - (len(lines) - 1) / 2), at["share"], width=0.4, color=colors[i],
                    hatch="////" if i else "", ec="white", lw=0, label=_LINES[tokens],
                )  # fmt: skip
            ax.set(title=f"{module}, {layers_of(window)}", xlabel="layer of the peak (counted from 0)")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.grid(axis="x", visible=False)
        for ax in leftmost(axes, 2):
            ax.set_ylabel("share of facts")
        legend_below(figure, axes[0])
    low, high = int(table["n"].min()), int(table["n"].max())
    over = facts_phrase(high) if low == high else f"{low} to {high} facts"
    return Plot(
        name="trace_peaks",
        title="Where tracing peaks",
        figure=figure,
        data=table,
        caption=(
            f"Share of facts whose largest tracing effect is at a layer: over {over} that have an effect above 0, the "
            "largest over all tokens of the prompt and at the last token of the subject. No means; of tied layers the "
            "lowest is counted."
        ),
    )


@both_widths
def scores_by_layer(table: pd.DataFrame, confidence: float) -> Plot:
    """Mean score by edited layer, one line per problem, a panel for each method and score but rewrite.

    `table` comes from `pipeline.analysis.by_layer.scores_by_layer_table`; rewrite has a figure of its own.
    """
    rows = table[table["score"] != "rewrite"]
    shown = trust.bands(rows.assign(problem=rows["problem"].map(words)))
    places = list(shown.groupby(["method", "score"], sort=False))
    # A method a row, whichever problems lack a score.
    scores, methods = list(dict.fromkeys(rows["score"])), list(dict.fromkeys(rows["method"]))
    places.sort(key=lambda item: (methods.index(item[0][0]), scores.index(item[0][1])))
    problems = list(dict.fromkeys(shown["problem"]))
    with style():
        figure, axes = panels(len(places), columns=3, width=3.3, height=2.8)
        for ax, ((method, score), group) in zip(axes, places, strict=True):
            bands(ax, group, "problem", problems, "mean")
            title = f"{words(str(score))}, {method_label(str(method))}"
            ax.set(title=title, xlabel=EDIT_LAYER, ylim=(-0.03, 1.03))
        for ax in leftmost(axes, 3):
            ax.set_ylabel("mean score (0 to 1)")
        legend_below(figure, axes[0])
    low, high = int(rows["n"].min()), int(rows["n"].max())
    over = facts_phrase(high) if low == high else f"{low} to {high} facts"
    return Plot(
        name="scores_by_layer",
        title="Paraphrase, neighborhood and overall score by layer",
        figure=figure,
        data=table,
        caption=(
            f"Scores by edited layer: means over {over}, of paraphrase and neighborhood prompts of a fact first their "
            "mean; overall is the mean of rewrite, paraphrase and neighborhood. "
            f"{trust.bands_phrase(rows, confidence).capitalize()}. Failed edits are not in the means. Essence is "
            "measured by make essence, with a figure of its own."
        ),
    )


@both_widths
def correlation_by_layer(table: pd.DataFrame, score: str, measure: str) -> Plot | None:
    """Correlation over facts of score and trace in each layer, one line per problem, a panel for each method and trace.

    `table` comes from `pipeline.analysis.by_layer.correlation_table`. None where no correlation is defined.
    """
    rows = table[(table["score"] == score) & (table["trace_measure"] == measure)]
    if not rows["r"].notna().any():
        return None
    shown = rows.assign(problem=rows["problem"].map(words), low=np.nan, high=np.nan)
    problems, n = list(dict.fromkeys(shown["problem"])), int(rows["n"].max())
    places = list(shown.groupby(["method", "trace_module", "trace_window"], sort=False))
    reach = _SURE / np.sqrt(n - 1)
    with style():
        one = len(places) == 1
        figure, axes = panels(len(places), columns=2, width=7.6 if one else 4.6, height=3.4)
        for ax, ((method, module, window), group) in zip(axes, places, strict=True):
            bands(ax, group, "problem", problems, "r")
            ax.axhline(0, color="0.4", lw=0.8)
            for end in (-reach, reach):
                ax.axhline(end, color="0.4", lw=1, ls=":")
            title = f"{method_label(str(method))}; {module}, {layers_of(window)}"
            ax.set(title=title, xlabel=EDIT_LAYER, ylim=(-1.03, 1.03))
        for ax in leftmost(axes, 2):
            ax.set_ylabel("correlation")
        legend_below(figure, axes[0])
    return Plot(
        name="correlation_by_layer",
        title="Correlation of edit success and tracing effect by layer",
        figure=figure,
        data=table,
        caption=(
            f"Pearson's correlation of the {words(score)} score with the {MEASURES.get(measure, words(measure))}, over "
            f"the facts of a layer ({facts_phrase(n)} at the most); no means. Dotted: with {facts_phrase(n)} that have "
            "nothing in common, about one layer in twenty lies beyond these lines where score and trace have nothing "
            "to do with each other. Layers where either does not vary have no point."
        ),
    )
