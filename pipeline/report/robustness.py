"""The report's section on whether other settings change the conclusion: one sentence, a forest plot, one table."""

from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pipeline.analysis.robustness import COUNT_COLUMNS, ROBUSTNESS_COLUMNS
from pipeline.analysis.trust import MIN_FACTS_OF_GAIN, MIN_FACTS_OF_MEANS, MIN_FACTS_SHOWN, shown
from pipeline.report.plots import Plot, both_widths, facts_phrase, leftmost, listed, narrow, panels, style, words
from pipeline.report.section import Section, Table, chance, number, spread, with_interval
from pipeline.report.sources import read_made
from pipeline.tables import OWN
from pipeline.words import method_label

_MARKERS = "osD^vPX"
_SAYS = {
    OWN: "as in the run", "module": "restored: {}", "window": "window {}", "noise": "noise × {}",
    "corruption and metric": "{}", "measure": "measure: {}", "known facts": "known: {}",
    "edited layers": "layers: {}",
    "concentrated traces": "concentrated traces, {}", "successful edits": "successful edits, {}",
}  # fmt: skip
_NAMES = ["method", "problem"]
_TEXTS = ("method", "problem", "score", "variation", "value")


def section(reports: Path, _data: Path, _confidence: float) -> Section:
    """The section, from what stage `robustness` wrote; the intervals' confidence is the tables' own."""
    # The value of the run's own row is empty, and no missing number.
    numbers: dict[str, Any] = {name: [""] for name in ROBUSTNESS_COLUMNS if name not in _TEXTS}
    table = read_made(
        reports / "robustness.csv",
        ROBUSTNESS_COLUMNS,
        command="make robustness",
        keep_default_na=False,
        na_values=numbers,
        dtype=dict.fromkeys(_TEXTS, str),
    )
    count = read_made(reports / "robustness_count.csv", COUNT_COLUMNS, command="make robustness").iloc[0]
    return Section(
        anchor="robustness",
        title="Would other settings change the conclusion?",
        paragraphs=[
            f"{_verdict(table, count)} {_together(count)}".strip(),
            _power(table),
            _loss(table, count),
            *_gone(table),
        ],
        points=_terms(table),
        tables=[_table(table, count)],
        plots=[forest(table, float(count["confidence"]))] if table["gain"].notna().any() else [],
    )


def _verdict(table: pd.DataFrame, count: "pd.Series[float]") -> str:
    """Whether the tests' outcome depends on the settings, and how many would reject if there were nothing to find."""
    tests, level = int(count["tests"]), 1 - float(count["confidence"])
    if not tests:
        return (
            f"Not known: no row is of {MIN_FACTS_SHOWN} facts or more, or their relations leave too few ways to deal "
            "traces, so nothing was tested."
        )
    counted = (
        f"of {tests} tests, one for each row of the table that is of enough facts, {int(count['rejected'])} find at "
        f"p ≤ {level:.2g} that the trace adds to what the layer explains. Were there nothing to find, about "
        f"{number(count['expected'], 1)} would, or fewer"
    )
    at = table.assign(found=table["permutation_holm"] <= level)[table["permutation_holm"].notna()]
    own = at[at["variation"] == OWN].set_index(_NAMES)["found"]
    base = at.set_index(_NAMES).index.map(own)
    changed = at[base.notna() & (base != at["found"])]
    if changed.empty and not at["found"].any():
        return f"No, as far as these facts can tell: {counted}; after Holm's correction none is left."
    if changed.empty:
        return (
            f"No: {counted}; after Holm's correction {int(count['rejected_holm'])} are left, the run's own among them."
        )
    named = [f"{_label(row)} ({_who(row)})" for row in changed.head(6).to_dict("records")]
    more = f", and {len(changed) - 6} more" if len(changed) > 6 else ""
    return (
        f"Yes, in {len(changed)} rows: {counted}; after Holm's correction {int(count['rejected_holm'])} are left. "
        f"The outcome is another than in the run for {listed(named)}{more}."
    )


def _together(count: "pd.Series[float]") -> str:
    if pd.isna(count["joint_tests"]):
        return ""
    return (
        "Rows share edits and traces, and so reject together: where the traces of a fact, in all variations, are dealt "
        f"to another fact of its relation, up to {int(count['joint_high'])} of {int(count['joint_tests'])} such rows "
        f"reject in {count['confidence']:.0%} of dealings; here {int(count['joint_rejected'])} do "
        f"(p = {chance(count['joint_pvalue'])})."
    )


def _power(table: pd.DataFrame) -> str:
    """What these facts could have shown."""
    n = int(table["n_facts"].max())
    high = table["dealt_high"].median()
    told = "That nothing is found does not show that there is nothing. "
    if pd.isna(high):
        return told + f"With {facts_phrase(n)}, a gain cannot be told from chance here."
    told += (
        f"With {facts_phrase(n)}, a gain has to be above {number(high)} (the median over rows) to be told from that of "
        "traces dealt to other facts of the relation"
    )
    enough = table[table["n_facts"] >= MIN_FACTS_OF_GAIN]
    if enough.empty:
        return f"{told}; below {MIN_FACTS_OF_GAIN} facts no interval of the gain is given."
    most = enough.loc[enough["gain_bound"].idxmax()]
    return (
        f"{told}; the largest that any row still allows is {number(most['gain_bound'])} ({_label(most)}, {_who(most)})."
    )


def _loss(table: pd.DataFrame, count: "pd.Series[float]") -> str:
    """What editing at the traced layer loses, over the rows."""
    known = table.dropna(subset=["regret"])
    if known.empty:
        return "Where to edit could not be asked: it takes two facts."
    points = known["regret"] * 100
    told = (
        "Against one fixed layer, chosen on other facts, editing at the traced layer loses "
        f"{number(points.min(), 1)} to {number(points.max(), 1)} points of {words(str(known['score'].iloc[0]))} score "
        f"(median {number(points.median(), 1)}); it gains in {int((points < 0).sum())} of {len(known)} rows"
    )
    enough = known[known["n_facts"] >= MIN_FACTS_OF_MEANS]
    if enough.empty:
        return f"{told}. Below {MIN_FACTS_OF_MEANS} facts no interval of it is given, and a gain may be chance."
    sure, tail = int((enough["regret_high"] < 0).sum()), (1 - float(count["confidence"])) / 2
    return (
        f"{told}. With an interval that lies on the side of a gain it does in {sure} of {len(enough)}; where the two "
        f"were alike, about {number(tail * len(enough), 1)} would."
    )


def _gone(table: pd.DataFrame) -> list[str]:
    """Facts for whose subject no other stands in."""
    replaced = table[table["value"].str.startswith("replace,")]
    if replaced.empty or not replaced["n_left_out"].max():
        return []
    first = replaced.loc[replaced["n_left_out"].idxmax()]
    return [
        f"For {facts_phrase(int(first['n_left_out']))} no other known subject of the relation has as many tokens and "
        "another object; rows of replaced subjects are without them."
    ]


def _terms(table: pd.DataFrame) -> list[str]:
    windows = {
        method_label(str(method)): int(group["edit_window"].max())
        for method, group in table.groupby("method", sort=False)
    }
    edited = listed([f"{name} changes {_blocks(width)}" for name, width in windows.items()])
    return [
        f"**Edits** are the run's own, and so is the number of blocks that one changes: {edited}.",
        "**Corruption and metric**: the subject's embeddings under noise (gaussian), set to 0 (zero), or another "
        "subject's of as many tokens (replace); and what a restoration brings back: the object's probability, its "
        "logarithm, or its logit less that of the other answer. Fractions are of what the corruption took of that.",
        "**Layers**: edits at robustness.layers of params.yaml only, such as those of another study at its relative "
        "depths. R² of the layer rises with the layers in it at which edits fail, so it is compared at like depths.",
        "**Known, concentrated, successful**: fewer facts. Stricter rules and concentrated traces are chosen without "
        "the scores; successful edits are chosen by the score itself, which takes away what differs between facts, so "
        "their R² is not that of all facts. A choice that leaves no fact out has no row.",
        "**By chance**: the range of the gain when traces are dealt to other facts of the relation. **Loses**: the "
        "score at one fixed layer less that at the traced layer, below 0 where tracing helps.",
    ]


def _blocks(width: int) -> str:
    return "1 block" if width == 1 else f"{width} blocks"


def _label(row: Any) -> str:
    """A variation in a reader's words."""
    return _SAYS.get(str(row["variation"]), "{}").format(words(str(row["value"])).replace(">=", "≥"))


def _who(row: Any) -> str:
    return f"{words(str(row['problem']))}, {method_label(str(row['method']))}"


def _table(table: pd.DataFrame, count: "pd.Series[float]") -> Table:
    rows = []
    for row in table.to_dict("records"):
        at, few = shown(row), row["n_facts"] < MIN_FACTS_OF_MEANS
        holm = None if at["permutation_pvalue"] is None else row["permutation_holm"]
        lost = (None, None) if few else (row["regret_low"], row["regret_high"])
        rows.append(
            [
                words(row["problem"]), method_label(row["method"]), _label(row), str(row["n_facts"]),
                number(row["r2_layer"]), number(row["r2_both"]),
                with_interval(row["gain"], at["gain_low"], at["gain_high"]),
                spread(row["dealt_low"], row["dealt_high"]), f"{chance(at['permutation_pvalue'])} ({chance(holm)})",
                with_interval(row["within_slope"], at["within_low"], at["within_high"], 2),
                with_interval(row["cv_gain"], at["cv_gain_low"], at["cv_gain_high"]),
                with_interval(row["regret"], *lost),
            ]
        )  # fmt: skip
    return Table(
        title="All variations",
        head=[
            "problem",
            "method",
            "varied",
            "facts",
            "layer",
            "both",
            "gain",
            "by chance",
            "p (Holm)",
            "slope",
            "gain",
            "loses",
        ],
        groups=[
            ("", 4),
            ("R²", 2),
            ("over chance", 3),
            ("within a fact", 1),
            ("held-out facts", 1),
            ("traced layer", 1),
        ],
        rows=rows,
        note=f"Score: {words(str(table['score'].iloc[0]))}. In brackets: {count['confidence']:.0%} intervals, where "
        "there are enough facts for them, and Holm's correction over all tests here. An en dash: too few facts, or a "
        "score or trace that does not vary.",
        source="robustness.csv",
        filters=[0, 1, 2],
    )


@both_widths
def forest(table: pd.DataFrame, confidence: float) -> Plot:
    """The gain over chance of every variation: a panel a problem, a line a variation, a mark a method."""
    methods, problems = (list(dict.fromkeys(table[name])) for name in _NAMES)
    keys = list(dict.fromkeys(zip(table["variation"], table["value"], strict=True)))
    place = {key: i for i, key in enumerate(keys)}
    colors = sns.color_palette("colorblind", len(methods))
    columns = min(3, len(problems))
    with style():
        height = 0.9 + len(keys) * max(0.19, 0.1 * len(methods))
        figure, axes = panels(len(problems), columns, width=(2.2 + 2.6 * columns) / columns, height=height)
        labelled = leftmost(axes, columns)
        for ax, problem in zip(axes, problems, strict=True):
            for i, method in enumerate(methods):
                at = table[(table["method"] == method) & (table["problem"] == problem)]
                shift = (i - (len(methods) - 1) / 2) * 0.6 / len(methods)
                for row in at.to_dict("records"):
                    y = place[row["variation"], row["value"]] + shift
                    _line(ax, row, y, colors[i], _MARKERS[i % len(_MARKERS)], 0.6 / len(methods))
            ax.axvline(0, color="0.3", lw=0.8, zorder=2)
            ax.set(title=words(problem), ylim=(len(keys) - 0.4, -0.6), xlabel="gain in R² over chance")
            ax.set_yticks(range(len(keys)))
            named = [_label({"variation": variation, "value": value}) for variation, value in keys]
            ax.set_yticklabels(named if ax in labelled else [], fontsize=8)
            ax.tick_params(axis="x", labelsize=8)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.grid(visible=False, axis="y")
            for line in [i - 0.5 for i in range(1, len(keys)) if keys[i][0] != keys[i - 1][0]]:
                ax.axhline(line, color="0.75", lw=0.6, zorder=1)
        marks = [
            axes[0].plot(
                [], [], color=colors[i], marker=_MARKERS[i % len(_MARKERS)], ls="", label=method_label(method)
            )[0]
            for i, method in enumerate(methods)
        ]
        bars = [Patch(color="0.8", label=f"{confidence:.0%} of dealt traces")]
        figure.legend(handles=[*marks, *bars], loc="outside lower center", ncols=2 if narrow() else 3, frameon=False)
    low, high = int(table["n_facts"].min()), int(table["n_facts"].max())
    over = facts_phrase(high) if low == high else f"{low} to {high} facts"
    few = "" if high >= MIN_FACTS_OF_GAIN else f" Below {MIN_FACTS_OF_GAIN} facts no interval of the gain is drawn."
    return Plot(
        name="robustness",
        title="What the trace adds to the layer, by setting",
        figure=figure,
        data=table,
        caption=(
            "Marks: what the trace adds to the R² of the layer, less what a trace dealt to facts at random adds on "
            f"average; each line differs from the run in one setting, of {over}. Gray bars: where {confidence:.0%} of "
            "dealings of whole traces to other facts of the relation lie, which is where marks lie if there is nothing "
            f"to find. Lines through marks: {confidence:.0%} intervals by facts.{few}"
        ),
    )


def _line(ax: Axes, row: dict[str, Any], y: float, color: Any, marker: str, height: float) -> None:
    """One mark with its bar of dealt traces and, where it is of enough facts, its interval."""
    if not pd.isna(row["dealt_low"]):
        ax.barh(y, row["dealt_high"] - row["dealt_low"], height, row["dealt_low"], color="0.8", lw=0, zorder=1.5)
    at = shown(row)
    if at["gain_low"] is not None and not pd.isna(row["gain_low"]):
        ax.plot([row["gain_low"], row["gain_high"]], [y, y], color=color, lw=1.2, zorder=3)
    ax.plot([row["gain"]], [y], color=color, marker=marker, ms=4, ls="", zorder=4)
