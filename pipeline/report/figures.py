"""The report's figures, in seaborn: each function returns a Plot, a drawn figure with its caption.

Captions say over what means and maxima were taken and on how many facts. How figures look is in
pipeline.report.plots.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.analysis import trust
from pipeline.errors import UserError
from pipeline.report.plots import (
    PAPER_SCORES,
    Plot,
    bands,
    bare,
    both_widths,
    facts_phrase,
    fitted_line,
    leftmost,
    legend_below,
    narrow,
    panels,
    style,
    width_of,
    words,
)
from pipeline.tables import ERROR_INJECTION
from pipeline.words import method_label

_LAYER = "layer (counted from 0)"
EDIT_LAYER = "edited layer (counted from 0)"
MANY_POINTS = 1_000  # from here on the points of a figure are lighter as pixels
_SUBJECT_ROLES = ("first_subject", "middle_subject", "last_subject")
MEASURES = {
    "fraction": "fraction restored (largest over tokens)",
    "effect": "tracing effect (largest over tokens)",
    "last_subject": "tracing effect at the last subject token",
    "last_subject_fraction": "fraction restored at the last subject token",
}


@both_widths
def trace_by_layer(table: pd.DataFrame, confidence: float) -> Plot:
    """Tracing effect by layer, one line per kind of token, one panel per module and window.

    `table` comes from `pipeline.analysis.scores.trace_by_layer_table`.
    """
    variants = list(table.groupby(["module", "window"], sort=False))
    with style():
        figure, axes = panels(len(variants), columns=2, width=7.6 if len(variants) == 1 else 4.6, height=3.8)
        lines = list(dict.fromkeys(table["line"]))
        for ax, ((module, window), group) in zip(axes, variants, strict=True):
            bands(ax, trust.bands(group), "line", lines, "effect")
            ax.axhline(0, color="0.4", lw=0.8)
            ax.set(title=f"{module}, {layers_of(window)}", xlabel=f"restored {_LAYER}")
        for ax in leftmost(axes, 2):
            ax.set_ylabel("tracing effect (probability)")
        legend_below(figure, axes[0])
    count = int(table["n"].max())
    fewer = table[table["n"] < count].groupby("line", sort=False)["n"].max()
    exceptions = "".join(f" ({line}: {facts_phrase(int(n))})" for line, n in fewer.items())
    return Plot(
        name="trace_by_layer",
        title="Tracing effect by layer",
        figure=figure,
        data=table,
        caption=(
            "How much of the probability of the true target comes back when a layer's clean output is put "
            "back into the run with a noised subject. Each prompt's tokens are reduced first, by the maximum "
            "for the line “largest over all tokens” and by the mean for the others; lines are then means "
            f"over {facts_phrase(count)}{exceptions}; {trust.bands_phrase(table, confidence)}."
        ),
    )


@both_widths
def trace_heatmap(trace: pd.DataFrame, facts: pd.DataFrame, example_fact: str) -> Plot:
    """One fact's tracing effect, token by layer, for the first module and window of the table.

    Parameters: `example_fact` is a fact_id, or "auto" for the fact with the largest tracing effect of that module and
    window at any token and layer. Raises UserError where `example_fact` was not traced.
    """
    module, window = trace[["module", "window"]].iloc[0]
    trace = trace[(trace["module"] == module) & (trace["window"] == window)]
    if example_fact == "auto":
        effect = trace.groupby("fact_id")["effect"].max()
        chosen, how = str(effect.idxmax()), "chosen as the fact with the largest tracing effect"
    else:
        chosen, how = example_fact, "named in params.yaml"
    one = trace[trace["fact_id"] == chosen]
    if one.empty:
        raise UserError(
            f"params.yaml: report.example_fact is {example_fact} but must be auto or the fact_id of a traced "
            f"fact, such as {trace['fact_id'].iloc[0]}"
        )
    grid = one.pivot(index="token_index", columns="layer", values="effect").sort_index().sort_index(axis=1)
    tokens = one.drop_duplicates("token_index").set_index("token_index").sort_index()
    labels = [_token(row.token) + (" *" if row.token_role in _SUBJECT_ROLES else "") for row in tokens.itertuples()]
    limit = max(float(np.nanmax(np.abs(grid.to_numpy()))), 1e-12)
    signed = bool((grid.to_numpy() < -0.1 * limit).any())
    with style():
        figure = Figure(figsize=(width_of(7.6), 1.5 + 0.27 * len(grid)), layout="constrained")
        ax = figure.add_subplot()
        sns.heatmap(
            grid,
            ax=ax,
            cmap="vlag" if signed else "rocket_r",
            vmin=-limit if signed else 0,
            vmax=limit,
            yticklabels=labels,
            rasterized=True,  # as vectors, viewers draw hairlines between the cells
            cbar_kws={"label": "tracing effect\n(probability)"},
        )
        ax.add_patch(Rectangle((0, 0), grid.shape[1], grid.shape[0], fill=False, ec="0.6", lw=0.8, clip_on=False))
        ticks = _thinned(grid.shape[1], 6 if narrow() else 16)
        ax.set_xticks([i + 0.5 for i in ticks], [str(grid.columns[i]) for i in ticks], rotation=0)
        ax.set(xlabel=f"restored {_LAYER}", ylabel="")
        ax.tick_params(axis="y", rotation=0, length=0)
        for tick in ax.get_yticklabels():
            tick.set_parse_math(False)  # a dollar sign in a token is a dollar sign
    fact = facts[facts["fact_id"] == chosen]
    target = f" → “{fact['target_true'].iloc[0]}”" if len(fact) else ""
    text = f" “{fact['prompt'].iloc[0].replace('{}', fact['subject'].iloc[0])}”" if len(fact) else ""
    clean, corrupt = one["p_clean"].iloc[0], one["p_corrupt"].iloc[0]
    return Plot(
        name="trace_heatmap",
        title="Where one fact is restored",
        figure=figure,
        data=one.drop(columns="fact_id"),
        caption=(
            f"Tracing effect of every token and layer for one fact, {chosen}:{text}{target} ({how}). No mean "
            "or maximum over facts, tokens or layers; the probabilities under noise are means over the noise "
            f"samples. {module}, {layers_of(window)}; tokens marked * belong to the subject. p(true) was "
            f"{clean:.3f} clean and {corrupt:.3f} with the subject noised."
        ),
    )


@both_widths
def rewrite_by_layer(table: pd.DataFrame, confidence: float) -> Plot:
    """Rewrite score by edited layer, one line per problem, one panel per method.

    `table` comes from `pipeline.analysis.scores.rewrite_by_layer_table`.
    """
    methods = list(table.groupby("method", sort=False))
    with style():
        figure, axes = panels(len(methods), columns=2, width=7.6 if len(methods) == 1 else 4.6, height=3.8)
        shown = table.assign(problem=table["problem"].map(words))
        problems = list(dict.fromkeys(shown["problem"]))
        for ax, (method, group) in zip(axes, shown.groupby("method", sort=False), strict=True):
            bands(ax, trust.bands(group), "problem", problems, "rewrite")
            ax.set(title=method_label(str(method)), xlabel=EDIT_LAYER, ylim=(-0.03, 1.03))
        for ax in leftmost(axes, 2):
            ax.set_ylabel("rewrite score (0 to 1)")
        legend_below(figure, axes[0])
    counts = table.groupby(["method", "problem"], sort=False)["n"].max().groupby("problem", sort=False).max()
    per_problem = ", ".join(f"{words(str(problem))} {n}" for problem, n in counts.items())
    over = facts_phrase(int(counts.max())) if counts.nunique() == 1 else f"facts ({per_problem})"
    return Plot(
        name="rewrite_by_layer",
        title="Edit success by layer",
        figure=figure,
        data=table,
        caption=(
            f"Rewrite score by edited layer: means over {over}; {trust.bands_phrase(table, confidence)}. "
            "Failed edits are not in the means."
        ),
    )


@both_widths
def score_against_trace(
    scores: pd.DataFrame,
    score: str,
    measure: str,
    problem: str = ERROR_INJECTION,
    method: str | None = None,
) -> Plot:
    """Score against trace measure, one small panel per layer with its fitted line, for one problem and
    method.

    The first problem, method, trace module and window of the table stand in for a `problem` or `method` that
    it does not hold.
    """
    if not (scores["problem"] == problem).any():
        problem = str(scores["problem"].iloc[0])
    rows = scores[scores["problem"] == problem]
    if method is None or not (rows["method"] == method).any():
        method = str(rows["method"].iloc[0])
    rows = rows[rows["method"] == method]
    module, window = rows[["trace_module", "trace_window"]].iloc[0]
    rows = rows[(rows["trace_module"] == module) & (rows["trace_window"] == window)].dropna(subset=[score, measure])
    layers = sorted(int(layer) for layer in rows["layer"].unique())
    color, line_color = sns.color_palette("colorblind")[0], sns.color_palette("colorblind")[3]
    with style():
        columns = min(3 if narrow() else 6, max(len(layers), 1))
        count = max(math.ceil(len(layers) / columns), 1)
        figure = Figure(
            figsize=(max((1.35 if narrow() else 1.45) * columns, 4.0), max(1.35 * count, 1.5) + 0.5),
            layout="constrained",
        )
        axes = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
        span, many = _span(rows[measure].to_numpy(float)), len(rows) >= MANY_POINTS
        for ax, layer in zip(axes.flat, layers, strict=False):
            at = rows[rows["layer"] == layer]
            x, y = at[measure].to_numpy(float), at[score].to_numpy(float)
            ax.scatter(x, y, s=12, color=color, alpha=0.75, lw=0, clip_on=False, zorder=3, rasterized=many)
            line = fitted_line(x, y)
            if line is not None:
                intercept, slope, r2 = line
                ends = np.array([x.min(), x.max()])
                ax.plot(ends, intercept + slope * ends, color=line_color, lw=1.6, zorder=4)
                ax.set_title(f"{layer}: R² {r2:.2f}", fontsize=9, pad=3)
            else:
                ax.set_title(f"{layer}", fontsize=9, pad=3)
            ax.set(ylim=(-0.05, 1.05), xlim=span)
            ax.xaxis.set_major_locator(MaxNLocator(3))
            ax.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
            ax.tick_params(labelsize=8)
        for ax in list(axes.flat)[len(layers) :]:
            ax.set_visible(False)
        _label_last_rows(list(axes.flat)[: len(layers)], columns)
        between = ";\n" if narrow() else "; "
        figure.supxlabel(f"{MEASURES.get(measure, words(measure))}{between}panels: {EDIT_LAYER}", fontsize=10)
        figure.supylabel(f"{words(score)} score", fontsize=10)
    facts = facts_phrase(int(rows["fact_id"].nunique()))
    return Plot(
        name="score_against_trace",
        title="Edit success against tracing effect, layer by layer",
        figure=figure,
        data=rows[["fact_id", "layer", score, measure]],
        caption=(
            f"{words(problem).capitalize()}, {method_label(method)}: {words(score)} score against the "
            f"{MEASURES.get(measure, words(measure))}, {module}, {layers_of(window)}. A panel is a layer, "
            f"counted from 0; a point is one fact ({facts}), no means over facts. Lines are least-squares "
            "fits within the layer, R² their fit; none is drawn where the trace does not vary."
        ),
    )


@both_widths
def r2_bars(regressions: pd.DataFrame, paper: pd.DataFrame) -> Plot:
    """Stacked bars of R² by problem, one panel per score: the layer's, and what the trace adds.

    Shows the first method, trace module, window and measure of the table. `paper` holds the published rows.
    """
    first = regressions.iloc[0]
    keys = ["method", "trace_module", "trace_window", "trace_measure"]
    rows = regressions[(regressions[keys] == first[keys]).all(axis=1)]
    scores, problems = list(dict.fromkeys(rows["score"])), list(dict.fromkeys(rows["problem"]))
    published = paper[paper["method"].str.lower() == str(first["method"]).lower()].set_index(["score", "problem"])
    palette = sns.color_palette("colorblind")
    place: NDArray[np.int64] = np.arange(len(problems))
    with style():
        figure, axes = panels(
            len(scores), columns=2, width=4.6 if len(scores) > 1 else 7.6, height=0.9 + 0.42 * len(problems)
        )
        for ax, score in zip(axes, scores, strict=True):
            at = rows[rows["score"] == score].set_index("problem").reindex(problems)
            layer, added = at["r2_layer"].to_numpy(float), at["r2_diff"].to_numpy(float)
            ax.barh(place, np.nan_to_num(layer), height=0.62, color=palette[0], label="edited layer")
            ax.barh(
                place, np.nan_to_num(added), left=np.nan_to_num(layer), height=0.62, color=palette[1],
                hatch="////", ec="white", lw=0, label="added by the trace",
            )  # fmt: skip
            for y, more, luck in zip(place, added, at["chance"].to_numpy(float), strict=True):
                told = "not defined" if np.isnan(more) else f"+{more:.3f} (chance {luck:.3f})"
                ax.text(1.05, y, told, va="center", ha="left", fontsize=8)
            theirs = PAPER_SCORES.get(score)
            known = [published["r2_layer"].get((theirs, problem), np.nan) for problem in problems]
            ax.scatter(
                known,
                place,
                marker="D",
                s=26,
                color="black",
                ec="white",
                lw=0.8,
                zorder=5,
                label="edited layer, paper (GPT-J)",
            )
            ax.set(xlim=(-0.02, 1.95 if narrow() else 1.62), title=f"{words(score)} score", yticks=place)
            ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
            ax.set_yticklabels([words(problem) for problem in problems])
            ax.invert_yaxis()
            ax.grid(axis="y", visible=False)
            ax.set_xlabel("R²")
        bare(axes, 2)
        legend_below(figure, axes[0])
    counts, measure = rows["n_facts"], str(first["trace_measure"])
    spread = (
        facts_phrase(int(counts.max())) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()} facts"
    )
    return Plot(
        name="r2_bars",
        title="What the layer explains, and what the trace adds",
        figure=figure,
        data=rows,
        caption=(
            f"R² of score ~ layer, and what the {MEASURES.get(measure, words(measure))} "
            f"({first['trace_module']}, {layers_of(first['trace_window'])}) adds with a line of its own in "
            f"each layer; rows are facts × layers, {spread}, none averaged. The number beside a bar is the "
            "addition; in brackets what a trace dealt to facts at random would add. Diamonds: the paper's R² "
            "of the layer on GPT-J, where it is known."
        ),
    )


def _label_last_rows(axes: Sequence[Axes], columns: int) -> None:
    """Put x tick labels under the panels, row by row, below which the last row of the grid is empty."""
    for ax in axes[max(len(axes) - columns, 0) :]:
        ax.tick_params(labelbottom=True)


def _span(x: NDArray[np.float64]) -> tuple[float, float]:
    if not len(x):
        return 0.0, 1.0
    low, high = min(float(x.min()), 0.0), float(x.max())
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _thinned(count: int, most: int) -> range:
    """Indices of at most `most` of `count` ticks, evenly spaced from the first."""
    return range(0, count, math.ceil(count / most))


def _token(token: str) -> str:
    """A token as a label: visible where it is all space, line breaks spelled out."""
    spelled = token.replace("\n", "\\n").replace("\t", "\\t")
    return spelled.strip() or spelled.replace(" ", "␣") or "(empty)"


def layers_of(window: object) -> str:
    """A window of layers in words."""
    return f"window of {window} layer" + ("" if window == 1 else "s")
