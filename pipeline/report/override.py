"""The report's section on the override question: where edited models trace, and what outlives a replaced old site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from pipeline.analysis.override import (
    ABOVE,
    ALL,
    ANY,
    APART,
    BELOW,
    HOLDS,
    LAYERS_COLUMNS,
    LEAST_ABOVE,
    NEAR,
    NONE,
    OVERRIDE_COLUMNS,
    TRACED,
)
from pipeline.analysis.trust import MIN_FACTS_OF_MEANS, bands_phrase
from pipeline.analysis.trust import bands as trusted
from pipeline.report.plots import Plot, bands, both_widths, facts_phrase, legend_below, panels, style, words
from pipeline.report.section import Section, Table, number, with_interval
from pipeline.report.sources import read_made
from pipeline.words import method_label

_OBJECTS = {"new": "new object", "true": "true object"}
_CASES = {ABOVE: "above the edit", BELOW: "below the edit", HOLDS: "holds the edit", ANY: "unedited model"}
_PANELS = (
    ("new", "effect", "trace of the new object", "effect (probability)"),
    ("true", "effect", "trace of the true object", "effect (probability)"),
    ("new", "kept_unedited", "unedited model's outputs put in", "share of the edit kept"),
    ("new", "kept_zeroed", "outputs zeroed", "share of the edit kept"),
)

Rows = dict[tuple[str, str, str, str], "pd.Series[float]"]


def section(reports: Path, _data: Path, confidence: float) -> Section:
    """The section, from what stage `override` wrote. Raises UserError where a table is damaged."""
    how: dict[str, Any] = {
        "command": "make override",
        "keep_default_na": False,
        "na_values": [""],
        "dtype": {"edited": str},
    }
    table = read_made(reports / "override.csv", OVERRIDE_COLUMNS, **how)
    layers = read_made(reports / "override_layers.csv", LAYERS_COLUMNS, **how)
    pairs = list(dict.fromkeys(zip(table["method"], table["problem"], strict=True)))
    told, tables, plots = [_asked()], [], []
    for pair in pairs:
        of_pair, by_layer = (
            frame[(frame["method"] == pair[0]) & (frame["problem"] == pair[1])] for frame in (table, layers)
        )
        name = f"{method_label(pair[0])}, {words(pair[1])}"
        rows = _indexed(of_pair)
        told.append(f"**{name}.** " + _found(rows))
        tables += [_peaks(of_pair, name), _kept(rows, name)]
        if (by_layer["edited"] != NONE).any():
            plots.append(_plot(by_layer, name, "override" + "_".join(["", *pair]) * (pair != pairs[0]), confidence))
    if not pairs:
        told.append("No edit was made, so nothing was measured.")
    return Section(
        anchor="override",
        title="Does an edit override what sits elsewhere?",
        paragraphs=told,
        tables=tables,
        plots=plots,
    )


def _asked() -> str:
    return (
        "An edit may work at a block where tracing finds little because it overrides what sits at another (Hase et "
        "al. 2023 leave this open). So each edited model was traced again, MLP outputs restored at the subject's last "
        "token over a window of blocks, under noise that neither the edit nor the naming of the old site has seen. The "
        "old site is the layer where the true object's trace peaked before the edit. Then, without noise, the MLP "
        "outputs of the window at the old site were replaced by the unedited model's, or by zeros: of what the edit "
        "did to an object's probability, how much is kept?"
    )


def _indexed(table: pd.DataFrame) -> Rows:
    """Rows by object, edited, case and quantity."""
    return {(row["object"], row["edited"], row["case"], row["quantity"]): row for _, row in table.iterrows()}


def _found(rows: Rows) -> str:
    """What was found and what it means: as sure as the facts allow."""
    counted = [int(row["n_facts"]) for key, row in rows.items() if key[1:3] == (ALL, ANY)]
    most = max(counted, default=0)
    if ("new", ALL, ANY, "total_effect") not in rows:
        return "No edit changed its object's probability enough to be looked at."
    sentences = [*_traces(rows), *_replaced(rows), *_true(rows)]
    if most < MIN_FACTS_OF_MEANS:
        sentences.append(
            f"All this describes {facts_phrase(most)}: below {MIN_FACTS_OF_MEANS} no interval is given, and other "
            "facts may do otherwise."
        )
    return " ".join(sentences)


def _traces(rows: Rows) -> list[str]:
    """Where the new object's trace peaks, in models edited away from the old site."""
    found = [rows.get(("new", ALL, APART, name)) for name in ("peak_at_edited", "peak_at_old", "half_at_both")]
    if any(row is None for row in found):
        return ["No edit away from its fact's old site left a trace of the new object that peaks anywhere."]
    edited, old, both = (row for row in found if row is not None)
    others = "" if _missing(old["others"]) else f"; at the old sites of other facts {_percent(old['others'])}"
    told = (
        f"In models edited away from the old site ({facts_phrase(int(edited['n_facts']))}), the new object's trace "
        f"peaks at the edited block in {_share(edited)} of edits and at the old site in {_share(old)}{others}; it is "
        f"at least half as high as its peak at both places in {_share(both)}. In brackets is what places drawn at "
        "random would give."
    )
    return [told, _meaning(edited, old, both)]


def _meaning(edited: pd.Series[float], old: pd.Series[float], both: pd.Series[float]) -> str:
    at_edited, at_old, at_both = (_more(row) for row in (edited, old, both))
    if at_both is None or at_edited is None or at_old is None:
        return "The intervals allow both: that the trace follows the edit, and that it does not."
    if at_both and at_old and not at_edited:
        said = "So the edit shows in the trace, yet the peak stays where it was: it does not name the edited block"
    elif at_both:
        said = "So the trace shows both places, the edited block and the old site"
    elif at_edited and not at_old:
        said = "So the trace moves with the edit"
    elif at_old and not at_edited:
        said = "So the trace does not move with the edit"
    else:
        said = "So neither place stands out in the trace" if not at_edited else "So the peak is at either place"
    if at_old and _general(old):
        said += "; and that other facts' old sites do about as well says that what passes there is the subject, not "
        said += "this one fact"
    return said + "."


def _replaced(rows: Rows) -> list[str]:
    """What replacing the old site's outputs does to the new object, case by case."""
    told = []
    if (below := rows.get(("new", ALL, BELOW, "kept_unedited"))) is not None:
        told.append(
            f"Where the old site lies below the edit ({facts_phrase(int(below['n_facts']))}), its MLPs give at the "
            "subject's last token what they gave before, by construction, and the edit works all the same: it "
            "overrides what they say."
        )
        zeroed, cost = rows.get(("new", ALL, BELOW, "kept_zeroed")), rows.get(("true", NONE, ANY, "kept_zeroed"))
        if zeroed is not None and cost is not None:
            told.append(
                f"With these outputs zeroed, {_beside(zeroed)} of what the edit did is kept, and in the unedited model "
                f"{_beside(cost)} of the true object's probability (in brackets: windows elsewhere)"
                f"{_needs(zeroed, cost)}"
            )
    if (above := rows.get(("new", ALL, ABOVE, "kept_unedited"))) is not None:
        told.append(
            f"Where the old site lies above the edit ({facts_phrase(int(above['n_facts']))}), the unedited model's "
            f"outputs there leave {_beside(above)} of what the edit did" + _outlives(above)
        )
    if (least := rows.get(("new", ALL, ANY, LEAST_ABOVE))) is not None:
        told.append(
            "The unedited model's outputs in a window above the edited block, wherever that is, leave "
            f"{_percent(least['chance'])} on average, and {_percent(least['mean'])} where they leave the least."
        )
    return told


def _needs(zeroed: pd.Series[float], cost: pd.Series[float]) -> str:
    if _missing(zeroed["chance"]) or _missing(cost["chance"]):
        return "."
    found = _more(zeroed, sign=-1), _more(cost, sign=-1)
    if all(found):
        also = ", and both need other facts' old sites much as well" if _general(cost) else ""
        return f": the edit needs the old site's output as the fact did{also}."
    return ": the edit does not need the old site's output, as the fact did." if found == (False, True) else "."


def _general(row: pd.Series[float]) -> bool:
    """Whether other facts' old sites are nearer to the old site in this than to chance; False where there are none."""
    return bool(abs(row["others"] - row["mean"]) < abs(row["others"] - row["chance"]))


def _outlives(above: pd.Series[float]) -> str:
    less = _more(above, sign=-1)
    if _missing(above["chance"]) or less is None:
        return "."
    if not less:
        return ", no less than elsewhere above it: the old site holds nothing that takes the fact back."
    if above["mean"] < above["others"]:  # not where there are none
        return ": less than there and elsewhere above the edit, so it acts in part through the old site."
    return ": less than elsewhere above the edit, where windows are further from it as well."


def _true(rows: Rows) -> list[str]:
    """What is left of the true object."""
    told = []
    if (least := rows.get(("true", ALL, ANY, LEAST_ABOVE))) is not None:
        told.append(
            f"Of the true object's fall they leave {_percent(least['chance'])} on average, and "
            f"{_percent(least['mean'])} where they leave the least."
        )
    traced, change = (rows.get(("true", ALL, *key)) for key in ((APART, "peak_at_old"), (ANY, "change")))
    if traced is not None:
        told.append(
            "Its trace still has a peak in some models edited away from the old site "
            f"({facts_phrase(int(traced['n_facts']))}), which is at that site in {_share(traced)}."
        )
    elif change is not None:
        told.append("In models edited away from the old site its trace has no peak left.")
    return told


def _missing(value: float) -> bool:
    return bool(pd.isna(value))


def _more(row: pd.Series[float], sign: int = 1) -> bool | None:
    """Whether the mean is above chance (below it, for sign -1); None where the interval allows both."""
    if row["n_facts"] < MIN_FACTS_OF_MEANS:
        return bool(sign * row["excess"] > 0)
    low, high = sorted((sign * row["excess_low"], sign * row["excess_high"]))
    return None if low <= 0 < high else bool(low > 0)


def _percent(value: float) -> str:
    return "–" if _missing(value) else f"{value:.0%}"


def _share(row: pd.Series[float], more: str = "") -> str:
    """A mean share, with its interval where there are facts enough, and what chance gives."""
    ends = f"; {row['low']:.0%} to {row['high']:.0%}" if row["n_facts"] >= MIN_FACTS_OF_MEANS else ""
    chance = "" if _missing(row["chance"]) else f" ({_percent(row['chance'])}{more}{ends})"
    return f"{_percent(row['mean'])}{chance}"


def _beside(row: pd.Series[float]) -> str:
    """`_share`, and the same at other facts' old sites."""
    others = "" if _missing(row["others"]) else f", other facts' old sites {_percent(row['others'])}"
    return _share(row, others)


def _where(edited: str) -> str:
    return {NONE: "no edit", TRACED: "traced block", ALL: "all layers"}.get(edited, f"layer {edited}")


def _cell(row: pd.Series[float] | None) -> list[str]:
    """Mean and chance."""
    if row is None:
        return ["–", "–"]
    few = row["n_facts"] < MIN_FACTS_OF_MEANS
    return [with_interval(row["mean"], *((None, None) if few else (row["low"], row["high"]))), number(row["chance"])]


def _peaks(table: pd.DataFrame, name: str) -> Table:
    rows, found = _indexed(table), []
    for thing in _OBJECTS:
        for edited in dict.fromkeys(table["edited"]):
            for case in (APART, NEAR, ANY):
                cells = [rows.get((thing, edited, case, f"peak_at_{at}")) for at in ("edited", "old")]
                both, there = rows.get((thing, edited, case, "half_at_both")), cells[1]
                if there is None:
                    continue
                place = _where(edited) + (", near the old site" if case == NEAR else "")
                shares = [text for cell in (*cells, both) for text in _cell(cell)]
                found.append([place, _OBJECTS[thing], str(int(there["n_facts"])), *shares])
    return Table(
        title=f"Where traces peak: {name}",
        head=["edited", "trace of", "facts", "share", "chance", "share", "chance", "share", "chance"],
        groups=[("", 3), ("peak at the edited block", 2), ("peak at the old site", 2), ("half as high at both", 2)],
        rows=found,
        note="A peak is at a place if the window around it holds the place. Near: one window can hold both, so they "
        "can't be told apart. Chance: places drawn at random. What counts are traces with a peak "
        "(override.min_effect), of edits that changed their object (override.min_change). The traced block is the old "
        "site itself.",
        source="override.csv",
        folded=True,
    )


def _kept(rows: Rows, name: str) -> Table:
    found = []
    for thing in _OBJECTS:
        for edited in (ALL, TRACED, NONE):
            for case in _CASES:
                cells = [rows.get((thing, edited, case, f"kept_{how}")) for how in ("unedited", "zeroed")]
                row = cells[1]
                if row is not None:
                    shares = [text for cell in cells for text in _cell(cell)]
                    place = f"{_where(edited)}: {_CASES[case]}" if edited != NONE else _CASES[case]
                    found.append([place, _OBJECTS[thing], str(int(row["n_facts"])), *shares])
    return Table(
        title=f"What is kept when MLP outputs at the old site are replaced: {name}",
        head=["edited: old site", "object", "facts", "share", "elsewhere", "share", "elsewhere"],
        groups=[("", 3), ("by the unedited model's", 2), ("by zeros", 2)],
        rows=found,
        note="Share of what the edit did to the object's probability; in the unedited model, of the true object's "
        "probability. At the subject's last token (override.csv has all the subject's tokens too). Below the edit the "
        "unedited model's outputs are there already, so all is kept by construction; in a window that holds the edit "
        "they undo it by construction. Elsewhere: windows on the same side of the edit.",
        source="override.csv",
    )


@both_widths
def _plot(layers: pd.DataFrame, name: str, file: str, confidence: float) -> Plot:
    shown = layers.assign(n=layers["n_facts"], line=layers["edited"].map(_where))
    order = list(dict.fromkeys(shown["line"]))
    sites = layers[(layers["quantity"] == "old_site") & (layers["mean"] > 0)]["layer"].unique()
    with style():
        figure, axes = panels(len(_PANELS), columns=2, width=4.6, height=3.2)
        for ax, (thing, quantity, title, label) in zip(axes, _PANELS, strict=True):
            rows = shown[(shown["object"] == thing) & (shown["quantity"] == quantity)]
            bands(ax, trusted(rows), "line", order, "mean")
            _mark(ax, rows, sites)
            ax.set(title=title, xlabel="layer, or the window's centre (counted from 0)", ylabel=label)
        legend_below(figure, axes[0])
    counts = shown.loc[shown["edited"] != NONE, "n"]
    low, high = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    over = facts_phrase(high) if low == high else f"{low} to {high} facts"
    return Plot(
        name=file,
        title=f"Edited models, traced and replaced: {name}",
        figure=figure,
        data=layers,
        caption=(
            "Above: what restoring MLP outputs at the subject's last token brings back under noise, in models edited "
            "at one layer each (dotted, in the line's color); triangles mark the facts' old sites. Below: of what the "
            "edit did to the new object, the share kept when the outputs of a window are replaced. Means over facts "
            f"whose edit changed the object's probability, {over}; {bands_phrase(shown, confidence)}. No maxima."
        ),
    )


def _mark(ax: Axes, rows: pd.DataFrame, sites: Sequence[int]) -> None:
    """The edited layers, each in the color of its line, and the old sites."""
    lines = {line.get_label(): line.get_color() for line in ax.lines}
    for edited in dict.fromkeys(rows["edited"]):
        if edited != NONE:
            ax.axvline(int(edited), color=lines[_where(edited)], lw=1, ls=":")
    ax.plot(
        sites, [0.02] * len(sites), "^", color="0.3", ms=6, clip_on=False,
        transform=ax.get_xaxis_transform(),
    )  # fmt: skip
