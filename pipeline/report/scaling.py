"""The report's section on many edits at once, mixtures of relations, relations, and the windows of MEMIT.

Meng et al. 2023, "Mass-Editing Memory in a Transformer", plot S, efficacy, paraphrase and neighborhood success and
generation entropy against the number of edits (their Figure 4), and mixtures of two relations.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from pipeline.analysis.scaling import MIXTURE_COLUMNS, PLACE_COLUMNS, RELATION_COLUMNS, SCALING_COLUMNS, SHOWN
from pipeline.analysis.trust import MIN_FACTS_OF_MEANS
from pipeline.report.plots import Plot, both_widths, facts_phrase, legend_below, line_of, listed, narrow, panels, style
from pipeline.report.section import Section, Table, number, with_interval
from pipeline.report.sources import read_made
from pipeline.tables import UNEDITED
from pipeline.words import method_label

_NAMES = {
    "S": "S, the harmonic mean", "ES": "ES, on the fact's own prompt", "PS": "PS, on paraphrases",
    "NS": "NS, on the neighborhood", "GE": "GE, entropy of text (bits)",
}  # fmt: skip
_MEASURES = ("S", "ES", "PS", "NS")
_WHAT = (
    "ES and PS are the shares of prompts on which the new object is likelier than the old one, NS that on which the "
    "old one still is, S their harmonic mean"
)


def draw(reports: Path, data: Path, confidence: float) -> Section:
    """The section, from the tables that stage `scaling` wrote. Raises UserError where one is missing or damaged."""
    table = read_made(reports / "scaling.csv", SCALING_COLUMNS)
    relations = read_made(reports / "relations.csv", RELATION_COLUMNS)
    mixtures = read_made(reports / "mixtures.csv", MIXTURE_COLUMNS)
    places = read_made(reports / "places.csv", PLACE_COLUMNS)
    tables, plots = [_scaling_rows(table)], []
    if (table["n_facts"] > 0).sum() > 1:
        plots.append(scaling_plot(table, confidence))
    if len(relations):
        tables.append(_relation_rows(relations))
    if len(mixtures):
        tables.append(_mixture_rows(mixtures))
    if len(places):
        plots.append(places_plot(places))
    return Section(
        anchor="scaling",
        title="Many edits at once",
        paragraphs=_paragraphs(table, relations, mixtures, places),
        tables=tables,
        plots=plots,
    )


def _interval(row: pd.Series, name: str, digits: int = 2) -> str:
    """A mean, with its interval where it is of enough facts."""
    count = row["n_texts"] if name == "GE" else row["n_facts"]
    if count < MIN_FACTS_OF_MEANS:
        return number(row[name], digits)
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], digits)


def _label(method: str) -> str:
    return method if method == UNEDITED else method_label(method)


def _few() -> str:
    return f"Intervals resample facts, and are left out below {MIN_FACTS_OF_MEANS} facts or texts."


def _scaling_rows(table: pd.DataFrame) -> Table:
    rows = [
        [f"{_label(row['method'])}, {row['n_edits']}" if row["n_edits"] else _label(row["method"]),
         *(_interval(row, name) for name in SHOWN), str(row["n_batches"]), str(row["n_facts"]), str(row["n_texts"])]
        for _, row in table[table["n_facts"] > 0].iterrows()
    ]  # fmt: skip
    layers = table[(table["n_edits"] > 0) & (table["n_facts"] > 0)].drop_duplicates("method")
    where = listed([f"{_label(row.method)} at layer {row.layer}" for row in layers.itertuples()]) if len(layers) else ""
    return Table(
        title="By number of edits made at once",
        head=["method, edits", *SHOWN, "batches", "facts", "texts"],
        rows=rows,
        note=(
            f"{_WHAT}; GE is the entropy of the words of a text that the edited model writes about a fact's "
            f"subject, in bits, as in CounterFact's table. Error injection; {where} (counted from 0), the depth at "
            "which the papers edit unless scaling.layer names a layer. A batch is a number of edits that one model "
            "holds together; ROME's are made one after the other, each on the model with those before. Facts of one "
            f"batch share a model, so an interval says how far the mean would move with other facts to "
            f"score, not with another batch. {_few()}"
        ),
        source="scaling.csv",
    )


def _relation_rows(table: pd.DataFrame) -> Table:
    rows = [
        [row["relation"], _label(row["method"]), str(row["n_edits"]), *(_interval(row, name) for name in _MEASURES),
         str(row["n_facts"])]
        for _, row in table.iterrows()
    ]  # fmt: skip
    return Table(
        title="By relation",
        head=["relation", "method", "edits", *_MEASURES, "facts"],
        rows=rows,
        note=f"The largest number of edits, its facts by relation; relations in the order of S. {_few()}",
        source="relations.csv",
    )


def _mixture_rows(table: pd.DataFrame) -> Table:
    rows = []
    for _, row in table.iterrows():
        cells = [f"{row['relation_a']} and {row['relation_b']}", str(row["n_edits"])]
        for name in _MEASURES:
            cells += [number(row[name], 2), number(row[f"{name}_apart"], 2)]
        enough = row["n_facts"] >= MIN_FACTS_OF_MEANS
        low, high = (row[f"S_difference_{end}"] if enough else float("nan") for end in ("low", "high"))
        rows.append([*cells, with_interval(row["S_difference"], low, high, 2), str(row["n_facts"])])
    return Table(
        title="Two relations mixed",
        head=["relations", "edits", *["mixed", "apart"] * len(_MEASURES), "mixed less apart", "facts"],
        groups=[("", 2), *((name, 2) for name in _MEASURES), ("S", 1), ("", 1)],
        rows=rows,
        note=(
            f"{_label(table['method'].iloc[0])}. The same facts, half of each relation, edited together and each among "
            f"as many edits of its own relation. {_few()}"
        ),
        source="mixtures.csv",
    )


def _paragraphs(
    table: pd.DataFrame, relations: pd.DataFrame, mixtures: pd.DataFrame, places: pd.DataFrame
) -> list[str]:
    there = table[table["n_facts"] > 0]
    edited, plain = there[there["n_edits"] > 0], there[there["n_edits"] == 0]
    told = []
    if len(plain):
        row = plain.iloc[0]
        told.append(
            f"An edit that does nothing would score ES {number(row['ES'], 2)}, PS {number(row['PS'], 2)}, "
            f"NS {number(row['NS'], 2)} and S {number(row['S'], 2)}, as the unedited model does."
        )
    for method, own in edited.groupby("method", sort=False):
        first, last = own.iloc[0], own.iloc[-1]
        if len(own) == 1:
            told.append(f"{_label(str(method))} has S {number(last['S'], 2)} at {_edits(last)}.")
        else:
            told.append(
                f"{_label(str(method))} goes from S {number(first['S'], 2)} at {_edits(first)} to "
                f"{number(last['S'], 2)} at {_edits(last)} "
                f"(NS from {number(first['NS'], 2)} to {number(last['NS'], 2)})."
            )
    left_out = sorted(set(table[(table["n_edits"] > 0) & (table["n_facts"] == 0)]["n_edits"]))
    if left_out:
        told.append(
            f"{listed([f'{n:,}' for n in left_out])} edits at once are left out: so many known facts of different "
            "subject or relation are not there."
        )
    more = []
    scored = relations[relations["method"] != UNEDITED].groupby("relation", sort=False)["S"].mean().dropna()
    if len(scored) > 1:
        more.append(
            f"Over the methods, facts of {scored.index[0]} edit best (mean S {number(scored.iloc[0], 2)}) and those of "
            f"{scored.index[-1]} worst ({number(scored.iloc[-1], 2)})."
        )
    if len(mixtures):
        most = mixtures.loc[mixtures["S_difference"].abs().idxmax()]
        more.append(
            f"Mixing two relations moves S by {number(most['S_difference'], 2)} at the most "
            f"({most['relation_a']} and {most['relation_b']})."
        )
    acting = places[places["acts"].astype(bool) & places["S"].notna()]
    if len(acting):
        best = acting.loc[acting["S"].idxmax()]
        more.append(
            f"One fact at a time, MEMIT has its largest S, {number(best['S'], 2)}, with a window of "
            f"{_blocks(int(best['window']))} around layer {best['layer']} ({facts_phrase(int(best['n_facts']))}); it "
            "is the best of many, so other facts would give less there."
        )
    return [" ".join(part) for part in (told, more) if part]


def _edits(row: pd.Series) -> str:
    return f"{row['n_edits']:,} {'edit' if row['n_edits'] == 1 else 'edits'}"


def _blocks(count: int) -> str:
    return f"{count} block" if count == 1 else f"{count} blocks"


@both_widths
def scaling_plot(table: pd.DataFrame, confidence: float) -> Plot:
    """S, ES, PS, NS and GE against the number of edits, a line a method; the unedited model is dotted."""
    there = table[table["n_facts"] > 0]
    methods = [str(name) for name in dict.fromkeys(there["method"]) if name != UNEDITED]
    names = [name for name in SHOWN if there[name].notna().any()]
    banded = False
    with style():
        figure, axes = panels(len(names), columns=3, width=3.4, height=2.9)
        for ax, name in zip(axes, names, strict=True):
            for i, method in enumerate(methods):
                banded |= _line(ax, there[there["method"] == method], name, method, i, len(methods))
            plain = there.loc[there["method"] == UNEDITED, name]
            if plain.notna().any():
                ax.axhline(float(plain.iloc[0]), color="0.35", lw=1.2, ls=":", label=UNEDITED)
            ax.set(title=_NAMES[name], xscale="log", xlabel="edits at once")
            ticks = sorted(set(there["n_edits"]) - {0})
            ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
            ax.minorticks_off()
            if name != "GE":
                ax.set_ylim(-0.03, 1.03)
        legend_below(figure, axes[0])
    bands = f"bands {confidence:.0%} intervals from resampled facts" if banded else "no bands"
    return Plot(
        name="scaling",
        title="Many edits at once",
        figure=figure,
        data=table,
        caption=(
            f"Means over facts of all batches of a size, against the number of edits that one model holds; {bands} "
            f"(none below {MIN_FACTS_OF_MEANS} facts or texts). {_WHAT}; GE is a mean over texts. Dotted: the unedited "
            "model, as an edit that does nothing would score. Logarithmic axis."
        ),
    )


def _line(ax: Axes, own: pd.DataFrame, name: str, method: str, place: int, of: int) -> bool:
    """Draw a method's line with its band; whether there is one."""
    own = own.dropna(subset=[name]).sort_values("n_edits")
    line = line_of(place, of)
    ax.plot(own["n_edits"], own[name], label=_label(method), **line)
    enough = own[own["n_texts" if name == "GE" else "n_facts"] >= MIN_FACTS_OF_MEANS]
    ax.fill_between(
        enough["n_edits"], enough[f"{name}_low"], enough[f"{name}_high"], color=line["color"], alpha=0.15, lw=0
    )
    return len(enough) > 1


@both_widths
def places_plot(places: pd.DataFrame) -> Plot:
    """Heatmaps of S, ES, PS and NS: windows by layers; windows that cannot act are left blank."""
    shown = places.assign(**{name: places[name].where(places["acts"].astype(bool)) for name in _MEASURES})
    with style():
        rows = places["window"].nunique()
        figure, axes = panels(len(_MEASURES), columns=2, width=4.6, height=1.1 + 0.34 * rows)
        for ax, name in zip(axes, _MEASURES, strict=True):
            grid = shown.pivot(index="window", columns="layer", values=name).sort_index().sort_index(axis=1)
            sns.heatmap(
                grid, ax=ax, vmin=0, vmax=1, cmap="rocket_r", annot=grid.shape[1] <= (6 if narrow() else 12), fmt=".2f",
                annot_kws={"size": 8}, cbar=False, rasterized=True,
            )  # fmt: skip
            ax.set(title=_NAMES[name], xlabel="layer in the window's middle (counted from 0)", ylabel="blocks")
            ax.tick_params(axis="y", rotation=0, length=0)
            ax.tick_params(axis="x", rotation=0)
    n = int(places["n_facts"].max())
    return Plot(
        name="places",
        title="Number and place of the layers that share an edit",
        figure=figure,
        data=places,
        caption=(
            f"MEMIT, error injection, one fact at a time: means over {facts_phrase(n)} by the number of blocks in the "
            f"window and the layer in its middle; windows are cut off at the model's ends. {_WHAT}. From 0 to 1; blank "
            "where nothing that the window changes reaches the answer."
        ),
    )
