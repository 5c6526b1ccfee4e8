"""A run as the README tells it: what it answers, and the tables that this rests on, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from pipeline.analysis.robustness import ROBUSTNESS_COLUMNS
from pipeline.analysis.trust import shown
from pipeline.report.compare import answers, headlines, traced
from pipeline.report.finished import Finished
from pipeline.report.layers import each_once, points_lost
from pipeline.report.localizers import of_tracing
from pipeline.report.plots import listed, words
from pipeline.report.section import chance, number, with_interval
from pipeline.report.sources import read_made
from pipeline.words import method_label


def run_of(run: Finished, paper: pd.DataFrame | None = None) -> str:
    """The run's sentences and tables. paper: rows of data/paper/hase2023_r2.csv to set beside each method's."""
    first, *others = dict.fromkeys(headlines(run)["method"])
    alike = _at_their_depths(run, first) if paper is not None else None
    made = [answers(run), _explained(run, [first], paper, alike)]
    if alike is not None:
        made.append(_null_block(alike))
    if table := _by_measure(run, first):
        made.append(table)
    if others:
        told = listed([method_label(other) for other in others])
        made += [f"The same by {told}:", _explained(run, others, paper, named=True)]
    return "\n\n".join(
        [*made, f"Each number is in the run's [tables]({run.folder}), and on its [page]({run.folder}/report.html)."]
    )


def statistics_of(run: Finished) -> str:
    """All that the run's tables say of the rewrite score, a row a method and problem."""
    level, fixed, random = (
        f"{run.confidence:.0%} interval",
        points_lost(traced(run), "fixed"),
        points_lost(traced(run), "random"),
    )
    head = [
        "method", "problem", "facts x layers", "layer", "null block kept", "trace", "both", "chance",
        f"gain ({level})", "bound", "p, Holm", f"held-out gain ({level})", f"slope within a fact ({level})", "p, Holm",
        f"traced layer loses, points ({level})", "to a random layer",
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in map(shown, headlines(run).to_dict("records")):
        cells = [
            method_label(row["method"]), words(row["problem"]), f"{row['n_facts']} x {row['n_layers']}",
            *(number(row[name]) for name in ("r2_layer", "r2_layer_all", "r2_trace", "r2_both", "chance")),
            with_interval(row["gain"], row["gain_low"], row["gain_high"]), number(row["gain_bound"]),
            chance(row["permutation_holm"]), with_interval(row["cv_gain"], row["cv_gain_low"], row["cv_gain_high"]),
            with_interval(row["within_slope"], row["within_low"], row["within_high"]), chance(row["within_holm"]),
            *(lost.get((row["problem"], row["method"]), "–") for lost in (fixed, random)),
        ]  # fmt: skip
        lines.append(cells)
    return (
        f"{run.model_name}, [{run.folder}/regressions.csv](../{run.folder}/regressions.csv) and "
        f"[layers.csv](../{run.folder}/layers.csv), rows of the rewrite score:\n\n{_table(lines)}"
    )


def _explained(
    run: Finished,
    methods: Sequence[str],
    paper: pd.DataFrame | None,
    alike: pd.DataFrame | None = None,
    *,
    named: bool = False,
) -> str:
    """What the layer explains and the trace adds, by problem, and what editing at the traced layer costs.

    alike: R² at the paper's depths, for a column of its own. named: the method in each row.
    """
    level, fixed, random = (
        f"{run.confidence:.0%} interval",
        points_lost(traced(run), "fixed"),
        points_lost(traced(run), "random"),
    )
    head = [
        *["method"] * named,
        "problem", "R², layer", "null block kept", f"trace adds beyond chance ({level}; at most)",
        f"to held-out facts ({level})", f"slope within a fact ({level})", f"traced layer loses, points ({level})",
        "to a random layer", "facts x layers",
    ]  # fmt: skip
    if alike is not None:
        head.append("at the paper's depths, null block kept")
    if paper is not None:
        head.append("GPT-J in the paper: layer, trace, both")
    lines = [head, ["---"] * len(head)]
    rows = headlines(run)
    for row in rows[rows["method"].isin(methods)].to_dict("records"):
        told = shown(row)
        gain = with_interval(row["gain"], told["gain_low"], told["gain_high"])
        bound = told["gain_bound"]
        cells = [
            *[method_label(row["method"])] * named,
            words(row["problem"]), number(row["r2_layer"]), number(row["r2_layer_all"]),
            gain if bound is None else f"{gain.removesuffix(')')}; {number(max(bound, 0.0))})",
            with_interval(row["cv_gain"], told["cv_gain_low"], told["cv_gain_high"]),
            with_interval(row["within_slope"], told["within_low"], told["within_high"]),
            *(lost.get((row["problem"], row["method"]), "–") for lost in (fixed, random)),
            f"{row['n_facts']} x {row['n_layers']}",
        ]  # fmt: skip
        if alike is not None:
            cells.append(number(alike["r2_layer_all"].get(row["problem"])))
        if paper is not None:
            cells.append(_published(paper, row["method"], row["problem"]))
        lines.append(cells)
    return _table(lines)


def _published(paper: pd.DataFrame, method: str, problem: str) -> str:
    """R² of the rewrite score on layer, trace and both that the paper prints for GPT-J, a dash where it has none."""
    of = (paper["method"] == method_label(method)) & (paper["problem"] == problem) & (paper["score"] == "rewrite")
    known = paper.loc[of, ["r2_layer", "r2_trace", "r2_both"]].to_numpy().flat
    return ", ".join(number(value) for value in known) or "–"


def _at_their_depths(run: Finished, method: str) -> pd.DataFrame | None:
    """Rows of robustness.csv by problem: the regressions of a method's edits at the run's robustness.layers alone; None
    where stage `robustness` was not run or did not ask for them.
    """
    if not (path := run.folder / "robustness.csv").is_file():
        return None
    table = read_made(path, ROBUSTNESS_COLUMNS, command="make robustness")
    rows = table[(table["variation"] == "edited layers") & (table["method"] == method)]
    return rows.set_index("problem") if len(rows) else None


def _null_block(alike: pd.DataFrame) -> str:
    """How much of R² at the paper's depths is the block that cannot act."""
    (kept_low, kept_high), (low, high) = (
        (number(alike[name].min()), number(alike[name].max())) for name in ("r2_layer_all", "r2_layer")
    )
    facts = " to ".join(map(str, sorted({int(alike["n_facts"].min()), int(alike["n_facts"].max())})))
    return (
        f"At the relative depths of the paper's blocks, {alike['value'].iloc[0]} here, and on {facts} facts, the layer "
        f"explains {kept_low} to {kept_high} with the block that cannot act, as in the paper's grid, and {low} to "
        f"{high} without it: so much of such an R² says that one block does nothing, and not where the others stand."
    )


def _by_measure(run: Finished, method: str) -> str:
    """What other measures of the trace lose than the run's first: a row a problem; "" where none names other layers."""
    cells = {}
    for measure, rows in of_tracing(run.choices).groupby("localizer", sort=False):
        fixed, random = (points_lost(rows, choice) for choice in ("fixed", "random"))
        cells[str(measure)] = tuple(
            (problem, f"{fixed[problem, of]} / {random[problem, of]}") for problem, of in fixed if of == method
        )
    columns = {names[0]: dict(own) for own, names in each_once(cells).items()}
    if len(columns) < 2:
        return ""
    lines = [["problem", *columns], ["---"] * (1 + len(columns))]
    lines += [[words(problem), *(own[problem] for own in columns.values())] for problem in next(iter(columns.values()))]
    return f"What the traced layer loses to a fixed one / to a random one, by measure of the trace:\n\n{_table(lines)}"


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
