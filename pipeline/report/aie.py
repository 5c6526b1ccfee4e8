"""The report's section on average indirect effects: where facts sit, after Meng et al. 2022, Figures 2 and 3."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import seaborn as sns

from pipeline.analysis.aie import AIE_COLUMNS, ATE_COLUMNS, PEAK_COLUMNS, ROLES, SEVERED_COLUMNS
from pipeline.analysis.trust import MIN_FACTS_OF_MEANS, bands_phrase
from pipeline.analysis.trust import bands as trusted
from pipeline.report.plots import (
    Plot,
    bands,
    both_widths,
    facts_phrase,
    leftmost,
    legend_below,
    listed,
    narrow,
    panels,
    style,
)
from pipeline.report.section import Section, Table, number, with_interval
from pipeline.report.sources import read_made
from pipeline.tables import NOT_SEVERED

_MODULES = {"hidden": "hidden state", "mlp": "MLP", "attn": "attention"}
_ROLES = {
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_subsequent": "first subsequent token",
    "further": "further tokens",
    "last_token": "last token",
}
_LINES = ("last_subject", "last_token")
_LAYER = "layer, or the window's centre (counted from 0)"
_ONE_ROLE = (
    "A token has one role: a subject's only token is its last, and the prompt's last token is no first subsequent one. "
    "The effects of a fact's tokens of one role are averaged first, then facts"
)


def section(reports: Path, _data: Path, confidence: float) -> Section:
    """The section, from what stage `maps` wrote; the intervals' confidence is the tables' own."""
    tables = [
        read_made(reports / name, columns, command="make maps", keep_default_na=False, na_values=[""])
        for name, columns in (
            ("aie.csv", AIE_COLUMNS), ("ate.csv", ATE_COLUMNS), ("aie_severed.csv", SEVERED_COLUMNS),
            ("aie_peaks.csv", PEAK_COLUMNS),
        )
    ]  # fmt: skip
    aie, ate, severed, peaks = tables
    aie, severed = (table.rename(columns={"n_facts": "n"}) for table in (aie, severed))
    confidence = float(ate["confidence"].iloc[0])
    plots = [heatmaps(aie), lines(aie, confidence)]
    if len(severed):
        plots.append(severed_lines(aie, confidence))
    return Section(
        anchor="maps",
        title="Where facts sit: average indirect effects",
        paragraphs=[_total(ate, confidence), *_peak(peaks, severed)],
        tables=[_peaks(peaks)],
        plots=plots,
    )


def _total(ate: pd.DataFrame, confidence: float) -> str:
    row = ate.iloc[0]
    n = int(row["n_facts"])
    ends = (row["low"], row["high"]) if n >= MIN_FACTS_OF_MEANS else (float("nan"),) * 2
    interval = f"; the interval is of {confidence:.0%}, by facts" if n >= MIN_FACTS_OF_MEANS else ""
    return (
        f"Noise on the subject takes the true object's probability from {number(row['p_clean'])} to "
        f"{number(row['p_corrupt'])}, an average total effect (ATE) of {with_interval(row['effect'], *ends)}: means "
        f"over {facts_phrase(n)}, of which it lowers {int(row['n_lowered'])}{interval}. An indirect effect is what "
        "comes back of it when one module's clean output is put back at one token."
    )


def _peak(peaks: pd.DataFrame, severed: pd.DataFrame) -> list[str]:
    """Where the MLP's peak at the last subject token is, what that is worth, and what severing takes there."""
    row = peaks[(peaks["module"] == "mlp") & (peaks["token_role"] == "last_subject")].iloc[0]
    layer, n = int(row["layer"]), int(row["n_facts"])
    others = "one fact leaves no other to choose it on"
    if n > 1:
        others = f"with each fact read at the layer that is best on the others, it is {number(row['held_out'])}"
    told = [
        f"At the last subject token, the MLPs of {_layers(row['window'])} bring back the most around layer {layer}, "
        f"{number(row['effect'])} on average. That layer is the largest of {int(row['n_layers'])} means on these same "
        f"{facts_phrase(n)}, which flatters it: {others}. Were there nothing to find, each fact's effects as likely "
        f"upside down, the largest mean would be about {number(row['by_chance'])}."
    ]
    at = severed[(severed["token_role"] == "last_subject") & (severed["layer"] == layer)].set_index("severed")
    if len(at):
        intact = float(at["intact"].iloc[0])
        parts = [f"with its {_module(name)} severed {_taken(at.loc[name], intact)}" for name in at.index]
        told.append(
            f"The hidden state after layer {layer} brings back {number(intact)} there, {listed(parts)}. "
            "A severed module's outputs at that token stay what they were under noise, so what is lost is what the "
            "state does by way of that module in the layers above. Were that module to take no part, nothing would be "
            "lost. The layer was chosen by the MLP's effect, not by this loss."
        )
    return told


def _taken(row: pd.Series[float], intact: float) -> str:
    few = row["n"] < MIN_FACTS_OF_MEANS
    ends = (float("nan"),) * 2 if few else (row["low"], row["high"])
    share = f", {row['taken'] / intact:.0%} of it," if intact > 0 else ""
    return f"{number(row['effect'])} ({with_interval(row['taken'], *ends)}{share} is lost)"


def _peaks(peaks: pd.DataFrame) -> Table:
    """The largest mean of each module, window and role of interest."""
    rows = peaks[peaks["token_role"].isin(_LINES)].sort_values("token_role", kind="stable").to_dict("records")
    return Table(
        title="The largest average indirect effects",
        head=["token", "restored", "window", "layer", "effect", "layer of others", "by chance", "facts"],
        rows=[
            [
                _ROLES[row["token_role"]], _module(row["module"]), str(row["window"]), str(row["layer"]),
                number(row["effect"]), number(row["held_out"]), number(row["by_chance"]), str(row["n_facts"]),
            ]
            for row in rows
        ],
        note=(
            "effect: the largest mean over facts of all layers, which is chosen on these facts. layer of others: each "
            "fact at the layer that is best on the others. by chance: the largest mean when each fact's effects keep "
            "or change their sign at random. Meng et al. print for GPT-2 XL, 1,000 facts and a window of 10: ATE "
            "0.186; at the last subject token hidden state 0.087 (layer 15), MLP 0.066, attention 0.016, each the "
            "largest mean."
        ),
        source="aie_peaks.csv",
    )  # fmt: skip


@both_widths
def heatmaps(aie: pd.DataFrame) -> Plot:
    """Mean effects, role by layer, a panel for each module and window; one scale for all."""
    whole = aie[aie["severed"] == NOT_SEVERED]
    limit = max(float(whole["effect"].abs().max()), 1e-12)
    signed = bool((whole["effect"] < -0.1 * limit).any())
    roles = [role for role in ROLES if (whole["token_role"] == role).any()]
    windows = dict.fromkeys(whole.loc[whole["module"] != "hidden", "window"])
    beside = [] if narrow() else [None]  # so that MLP and attention stand side by side
    places = [("hidden", 1), *beside, *((module, window) for window in windows for module in ("mlp", "attn"))]
    with style():
        figure, axes = panels(len(places), columns=2, width=5.2, height=2.1)
        for ax, place in zip(axes, places, strict=True):
            if place is None:
                ax.set_visible(False)
                continue
            group = whole[(whole["module"] == place[0]) & (whole["window"] == place[1])]
            grid = group.pivot(index="token_role", columns="layer", values="effect").reindex(roles)
            sns.heatmap(
                grid, ax=ax, cmap="vlag" if signed else "rocket_r", vmin=-limit if signed else 0, vmax=limit,
                yticklabels=[_ROLES[role] for role in roles], cbar=False,
                rasterized=True,  # as vectors, viewers draw hairlines between the cells
            )  # fmt: skip
            ticks = range(0, grid.shape[1], max(1, -(-grid.shape[1] // (6 if narrow() else 10))))
            ax.set_xticks([i + 0.5 for i in ticks], [str(grid.columns[i]) for i in ticks], rotation=0)
            ax.set(title=_variant(*place), xlabel="window's centre (counted from 0)", ylabel="")
            ax.tick_params(axis="y", rotation=0, length=0)
            ax.label_outer(remove_inner_ticks=True)
        where = "bottom" if narrow() else "right"
        label = "average indirect effect\n(probability)"
        figure.colorbar(axes[0].collections[0], ax=axes, location=where, label=label, aspect=30)
    return Plot(
        name="aie_heatmaps",
        title="Average indirect effects by token and layer",
        figure=figure,
        data=aie,
        caption=(
            "How much of the true object's probability comes back when a module's clean output is put back at a token "
            f"of this role, over a window of layers, under noise on the subject. {_ONE_ROLE}: {_over(whole)}. No "
            "maxima. All panels have one scale."
        ),
    )


@both_widths
def lines(aie: pd.DataFrame, confidence: float) -> Plot:
    """Mean effects by layer at the last subject token and at the last token, a line for each module and window."""
    whole = aie[(aie["severed"] == NOT_SEVERED) & aie["token_role"].isin(_LINES)]
    shown = whole.assign(line=[_variant(*pair) for pair in zip(whole["module"], whole["window"], strict=True)])
    order = list(dict.fromkeys(shown["line"]))
    with style():
        figure, axes = panels(len(_LINES), columns=2, width=4.6, height=3.6)
        for ax, role in zip(axes, _LINES, strict=True):
            bands(ax, trusted(shown[shown["token_role"] == role]), "line", order, "effect")
            ax.axhline(0, color="0.4", lw=0.8)
            ax.set(title=_ROLES[role], xlabel=_LAYER)
        for ax in leftmost(axes, 2):
            ax.set_ylabel("average indirect effect (probability)")
        legend_below(figure, max(axes, key=lambda ax: len(ax.lines)))
    return Plot(
        name="aie_lines",
        title="Average indirect effects at the last subject token and the last token",
        figure=figure,
        data=aie,
        caption=f"The same effects at two tokens. Means over facts: {_over(whole)}; {bands_phrase(whole, confidence)}.",
    )


@both_widths
def severed_lines(aie: pd.DataFrame, confidence: float) -> Plot:
    """Mean effects of a hidden state at the last subject token by layer: alone, and in the severed models."""
    hidden = aie[(aie["module"] == "hidden") & (aie["token_role"] == "last_subject")]
    labels = {name: f"{_module(name)} severed" for name in _MODULES} | {NOT_SEVERED: "hidden state restored"}
    shown = hidden.assign(line=hidden["severed"].map(labels))
    with style():
        figure, (ax,) = panels(1, columns=1, width=7.6, height=3.6)
        bands(ax, trusted(shown), "line", list(dict.fromkeys(shown["line"])), "effect")
        ax.axhline(0, color="0.4", lw=0.8)
        ax.set(xlabel="restored layer (counted from 0)", ylabel="average indirect effect (probability)")
        legend_below(figure, ax)
    return Plot(
        name="aie_severed",
        title="What a hidden state does without the modules above it",
        figure=figure,
        data=aie,
        caption=(
            "Average indirect effect of the hidden state at the last subject token, one layer restored at a time: as "
            "it is, and with that token's MLP or attention outputs held at what they were under the same noise. Where "
            f"a module takes no part, its line is the first one. Means over facts: {_over(hidden)}; "
            f"{bands_phrase(hidden, confidence)}. reports/aie_severed.csv has what is lost, paired by fact, with "
            "intervals."
        ),
    )


def _over(table: pd.DataFrame) -> str:
    """How many facts the means are over, by role where they differ."""
    counts = table.groupby("token_role", sort=False)["n"].max()
    if counts.nunique() == 1:
        return facts_phrase(int(counts.iloc[0]))
    return ", ".join(f"{_ROLES[role]} {facts_phrase(int(n))}" for role, n in counts.items())


def _module(name: object) -> str:
    return _MODULES[str(name)]


def _layers(window: object) -> str:
    return f"{window} layer" + ("" if window == 1 else "s")


def _variant(module: object, window: object) -> str:
    return f"{_module(module)}, {_layers(window)}"
