"""The report's section on where to edit: at the layer that a fact's trace names, or at one layer for all facts?"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns

from pipeline.analysis.layers import WITHIN
from pipeline.analysis.trust import MIN_FACTS_OF_MEANS, MIN_FACTS_SHOWN, bands
from pipeline.report.plots import Plot, bare, both_widths, facts_phrase, legend_below, listed, panels, style, words
from pipeline.report.section import Table, chance, number, spread, with_interval
from pipeline.words import method_label

_DRAWN = {
    "traced": "layer that its trace names",
    "fixed": "one layer, chosen on other facts",
    "random": "random layer",
    "dealt": "layer that others' traces name",
    "best": "its best layer, seen afterwards",
}
_MARKERS = "osD^P"
LOST = {"fixed": "one fixed layer, chosen on other facts", "random": "a random layer"}
_KEYS = ["localizer", "problem", "method"]


def section(table: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """What the page says of `pipeline.analysis.layers.layer_table`, of the rewrite score where the run has it.

    `first`: the sentence on the first method and localizer, "" without one; `rows`: one for each method, problem and
    localizer; `lost`: what is lost against each of LOST, by localizer, problem and method; `score` in words;
    `intervals`: whether any are of enough facts to be printed, which is `least`; `confidence` as text; `localizers`:
    how many; `tests`: how many p-values are in `rows`; `within`: the k of hit_k.
    """
    rows = _rows(table)
    count = len({row["localizer"] for row in rows})
    by = pd.DataFrame(rows).groupby(["method", "localizer"], sort=False) if rows else []
    first = next((_sentence(group, confidence, named=count > 1) for _, group in by), "")
    lost = {
        choice: {
            str(localizer): points_lost(group, choice, _score(table))
            for localizer, group in table.groupby("localizer", sort=False)
        }
        for choice in LOST
    }
    return {
        "first": first,
        "rows": rows,
        "lost": lost,
        "score": words(_score(table)),
        "intervals": any(row["regret_low"] is not None for row in rows),
        "least": MIN_FACTS_OF_MEANS,
        "confidence": f"{confidence:.0%}",
        "localizers": count,
        "tests": sum(row["p"] is not None for row in rows),
        "within": WITHIN,
    }


def tables(told: dict[str, Any], permutations: int) -> list[Table]:
    """What `section` says as tables: what is lost; the means by the first localizer, and, folded, by the others."""
    found = [_lost(told, choice) for choice in LOST] if told["rows"] else []
    interval = f" ({told['confidence']} interval)" if told["intervals"] else ""
    head = [
        "problem", "method", "facts", "traced", "fixed layer", "random", "others' traces", "best",
        f"fixed: loses{interval}", "others': gains (p)", *(f"within {k}" for k in told["within"]),
    ]  # fmt: skip
    groups = [
        ("", 3), (f"mean {told['score']} score at", 5), ("traced against", 2),
        ("near the best (random)", len(told["within"])),
    ]  # fmt: skip
    by: dict[str, tuple[tuple[str, ...], ...]] = {}
    for row in told["rows"]:
        by[row["localizer"]] = (*by.get(row["localizer"], ()), tuple(_cells(row)))
    for place, (rows, localizers) in enumerate(each_once(by).items()):
        named = f", by {listed(localizers)}" if told["localizers"] > 1 else ""
        found.append(
            Table(
                title=f"Mean scores by where facts are edited{named}",
                head=head,
                groups=groups,
                rows=rows,
                source="layers.csv",
                folded=place > 0,
                note="" if place else _note(told, permutations),
            )
        )
    return found


def sure(told: dict[str, Any]) -> list[str]:
    """How far the sentence goes that `section` puts first: a point for the page's list, none where there is none."""
    if not told["rows"]:
        return []
    counts = [row["n_facts"] for row in told["rows"]]
    over = facts_phrase(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} facts"
    if told["intervals"]:
        how = f"its {told['confidence']} interval, by facts, stands in the table; where that holds 0, it may be chance"
    else:
        how = f"with so few facts it may be chance, and below {told['least']} no interval is given"
    return [
        f"What is lost at the traced layer is a mean over {over}, each beside a layer that was chosen without it; "
        f"{how}. It speaks of facts of these relations, in this model, by these methods."
    ]


def points_lost(table: pd.DataFrame, choice: str, score: str = "rewrite") -> dict[tuple[str, str], str]:
    """(problem, method) to the hundredths of a score that the layer with the largest trace loses against a choice, with
    their interval where it may be shown, as text. table: rows of layers.csv by one localizer.
    """
    found = {}
    for row in table[(table["score"] == score) & (table["choice"] == choice)].to_dict("records"):
        regret, *ends = _regret(row)
        low, high = (None if end is None else 100 * end for end in ends)
        found[row["problem"], row["method"]] = with_interval(100 * regret, low, high, 1)
    return found


def each_once(cells: dict[str, tuple[Any, ...]]) -> dict[tuple[Any, ...], list[str]]:
    """What localizers say, each once, to those that say it."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for localizer, own in cells.items():
        found.setdefault(own, []).append(localizer)
    return found


def _regret(row: "pd.Series[Any] | dict[Any, Any]") -> tuple[float, float | None, float | None]:
    """What a row of layers.csv loses, and the ends of its interval, None where it is of too few facts."""
    if row["n_facts"] < MIN_FACTS_OF_MEANS:
        return row["regret"], None, None
    return row["regret"], row["regret_low"], row["regret_high"]


def _lost(told: dict[str, Any], choice: str) -> Table:
    """A row for each method and localizer, a column for each problem: what is lost against the choice, in points."""
    problems, methods = (list(dict.fromkeys(row[name] for row in told["rows"])) for name in ("problem", "method"))
    each = list(each_once({name: tuple(lost.items()) for name, lost in told["lost"][choice].items()}).items())
    lines = [
        [method_label(method), names[0], *(dict(lost).get((problem, method), "–") for problem in problems)]
        for method in methods
        for lost, names in each
        if any(of == method for (_, of), _ in lost)
    ]
    interval = f", with {told['confidence']} intervals" if told["intervals"] else ""
    same = "".join(f" By {listed(names[1:])} they are the same as by {names[0]}." for _, names in each if names[1:])
    return Table(
        title=f"What the traced layer loses against {LOST[choice]}",
        head=["method", "trace", *map(words, problems)],
        rows=lines,
        source="layers.csv",
        note=f"Points, that is hundredths, of the {told['score']} score{interval}; below 0 where the traced layer is "
        f"the better one.{same}",
    )


def _cells(row: dict[str, Any]) -> list[str]:
    mean, lost = row["mean"], number(row["regret"])
    ends = spread(row["regret_low"], row["regret_high"])
    return [
        words(row["problem"]), method_label(row["method"]), str(row["n_facts"]), number(mean["traced"]),
        f"{number(mean['fixed'])} ({row['layer']})", number(mean["random"]), number(mean["dealt"]),
        number(mean["best"]), lost if ends == "–" else f"{lost} ({ends})", f"{number(row['own'])} ({chance(row['p'])})",
        *(f"{traced:.0%} ({random:.0%})" for traced, random in row["hits"]),
    ]  # fmt: skip


def _note(told: dict[str, Any], permutations: int) -> str:
    few = f"Below {told['least']} facts intervals are not given, as they miss the mean too often."
    return (
        "Each fact at the layer with its largest trace (**traced**); at the one layer with the highest mean over all "
        "other facts (**fixed layer**, in brackets the one chosen for most facts, counted from 0); at a **random** "
        "one; at the layers that the traces of the other facts of its relation name (**others' traces**); and at its "
        "own **best** one, which is chosen on the scores that it is judged by, so that nobody can reach it and chance "
        "raises it. **loses**: fixed less traced, below 0 where tracing helps. **gains**: traced less others', with "
        f"the share of {permutations} dealings of traces to facts of the same relation that do as well "
        f"({told['tests']} such tests here, uncorrected): a trace may name good layers and yet say nothing of its own "
        "fact. **near the best**: share of facts whose traced layer is within so many blocks of the fact's best one, "
        f"and of random layers.{'' if told['intervals'] else ' ' + few}"
    )


def _score(table: pd.DataFrame) -> str:
    """The score that the page is about."""
    return "rewrite" if table.empty or (table["score"] == "rewrite").any() else str(table["score"].iloc[0])


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per localizer, problem and method: means and hits of the choices, regrets, without what is withheld."""
    rows = []
    of_score = table[table["score"] == _score(table)]
    for (localizer, problem, method), group in of_score.groupby(_KEYS, sort=False):
        at = group.set_index("choice")
        n_facts = int(at["n_facts"].iloc[0])
        fixed, p = at.loc["fixed"], at.loc["dealt", "permutation_pvalue"]
        untested = n_facts < MIN_FACTS_SHOWN or pd.isna(p)
        regret, low, high = _regret(fixed)
        rows.append(
            {
                "localizer": localizer,
                "problem": problem,
                "method": method,
                "n_facts": n_facts,
                "mean": at["mean"].to_dict(),
                "layer": int(fixed["layer"]),
                "regret": regret,
                "regret_low": low,
                "regret_high": high,
                "own": round(-at.loc["dealt", "regret"], 12) + 0,  # never minus 0
                "p": None if untested else p,
                "hits": [(at.loc["traced", f"hit_{k}"], at.loc["random", f"hit_{k}"]) for k in WITHIN],
                "score": _score(table),
            }
        )
    return rows


def _sentence(rows: pd.DataFrame, confidence: float, *, named: bool) -> str:
    """What editing at the traced layer costs or brings against one fixed layer, for one method and localizer.

    named: whether to say which localizer, as the run has several.
    """
    first = rows.iloc[0]
    who = f"{method_label(str(first['method']))}, {first['localizer']}" if named else method_label(str(first["method"]))
    parts, unit, level = [], f" points of {words(first['score'])} score", f"{confidence:.0%} interval "
    for row in rows.to_dict("records"):
        sign = 1 if row["regret"] >= 0 else -1
        told = f"{'loses' if sign > 0 else 'gains'} {_points(sign * row['regret'])}{unit}"
        if not pd.isna(row["regret_low"]):
            ends = sorted((sign * row["regret_low"], sign * row["regret_high"]))
            told += f" ({level}{_points(ends[0])} to {_points(ends[1])})"
            level = ""
        parts.append(f"{told} for {words(row['problem'])}")
        unit = ""
    few = rows["n_facts"] < MIN_FACTS_OF_MEANS
    note = f"; below {MIN_FACTS_OF_MEANS} facts no interval is given, and it may be chance" if few.any() else ""
    return f"Editing at the traced layer ({who}) {listed(parts)} against one fixed layer, chosen on other facts{note}."


def _points(share: float) -> str:
    """A share of the score in hundredths, to one decimal; never minus 0."""
    return f"{round(share * 100, 1) + 0:.1f}"


@both_widths
def layers_plot(table: pd.DataFrame, confidence: float) -> Plot | None:
    """Mean score by problem at the layers of each choice, one panel per method; None where nothing can be chosen.

    Shows the first localizer, and the score that the page is about.
    """
    if table.empty:
        return None
    rows = table[(table["score"] == _score(table)) & (table["localizer"] == table["localizer"].iloc[0])]
    problems = list(dict.fromkeys(rows["problem"]))
    shown = bands(rows.assign(n=rows["n_facts"]))
    methods = list(shown.groupby("method", sort=False))
    colors = sns.color_palette("colorblind")
    with style():
        figure, axes = panels(
            len(methods), columns=2, width=7.6 if len(methods) == 1 else 5.2, height=1.2 + 0.62 * len(problems)
        )
        for ax, (method, group) in zip(axes, methods, strict=True):
            for i, (choice, label) in enumerate(_DRAWN.items()):
                at = group[group["choice"] == choice].set_index("problem").reindex(problems)
                place = np.arange(len(problems)) + 0.14 * (i - (len(_DRAWN) - 1) / 2)
                mean = at["mean"].to_numpy(float)
                ends = np.abs(at[["low", "high"]].to_numpy(float).T - mean)
                # No bars about the best: where it is near 1 they hold it in fewer runs than they say.
                ends = np.full_like(ends, np.nan) if choice == "best" else ends
                ax.errorbar(
                    mean, place, xerr=ends, fmt=_MARKERS[i], ms=5, color=colors[i], ecolor=colors[i], elinewidth=1.4,
                    label=label, zorder=3, clip_on=False,
                )  # fmt: skip
            ax.set(
                xlim=(-0.03, 1.03), yticks=np.arange(len(problems)), title=method_label(str(method)),
                xlabel=f"mean {words(_score(table))} score (0 to 1)", ylim=(len(problems) - 0.5, -0.5),
            )  # fmt: skip
            ax.set_yticklabels([words(str(problem)) for problem in problems])
            ax.grid(axis="y", visible=False)
        bare(axes, 2)
        legend_below(figure, axes[0])
    low, high = int(rows["n_facts"].min()), int(rows["n_facts"].max())
    over = facts_phrase(high) if low == high else f"{low} to {high} facts"
    few = (rows["n_facts"] < MIN_FACTS_OF_MEANS).to_numpy()
    bars = f"bars {confidence:.0%} intervals from resampled facts, for the first three"
    if few.any():
        which = "no bars" if few.all() else f"{bars}, but none"
        bars = f"{which} below {MIN_FACTS_OF_MEANS} facts, where they miss the mean too often"
    return Plot(
        name="layers",
        title="Where to edit",
        figure=figure,
        data=table,
        caption=(
            f"Mean {words(_score(table))} score over {over} where each is edited at the layer that its trace names "
            f"({rows['localizer'].iloc[0]}, the largest); at the one layer with the highest mean over all other facts; "
            "at a random layer (its mean over layers); at the layers that traces of other facts of its relation name; "
            f"and at its own best layer, which is chosen on these scores themselves and so flattered; {bars}."
        ),
    )
