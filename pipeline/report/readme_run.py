"""A run as the README tells it: what it answers, and the tables that this rests on, in Markdown."""

from __future__ import annotations

import pandas as pd

from pipeline.analysis.robustness import ROBUSTNESS_COLUMNS
from pipeline.analysis.trust import shown
from pipeline.report import layers
from pipeline.report.answer import headline
from pipeline.report.compare import answers
from pipeline.report.finished import Finished
from pipeline.report.localizers import of_tracing
from pipeline.report.plots import words
from pipeline.report.section import number, with_interval
from pipeline.report.sources import read_made
from pipeline.words import method_label


def run_of(run: Finished, paper: pd.DataFrame | None = None) -> str:
    """The run's sentences and tables. paper: rows of data/paper/hase2023_r2.csv to set beside the first table."""
    costs = _lost(run)
    made = [answers(run), _explained(run, costs, paper)]
    if run.regressions["method"].nunique() > 1:
        made.append(_by_method(costs))
    return "\n\n".join(
        [*made, f"Each number is in the run's [tables]({run.folder}), and on its [page]({run.folder}/report.html)."]
    )


def _explained(run: Finished, costs: dict[tuple[str, str], str], paper: pd.DataFrame | None) -> str:
    """What the layer explains and the trace adds, by problem, and what editing at the traced layer costs."""
    level = f"{run.confidence:.0%} interval"
    head = [
        "problem", "R², layer", "null block kept", f"trace adds beyond chance ({level}; at most)",
        f"to held-out facts ({level})", f"slope within a fact ({level})", f"traced layer loses, points ({level})",
        "facts x layers",
    ]  # fmt: skip
    theirs, alike = None, pd.DataFrame()
    if paper is not None:
        theirs = paper[(paper["method"] == "ROME") & (paper["score"] == "rewrite")].set_index("problem")
        alike = _at_their_depths(run)
        head += ["at the paper's depths, null block kept"] * (not alike.empty)
        head.append("GPT-J in the paper: layer, trace, both")
    lines = [head, ["---"] * len(head)]
    for row in headline(run.regressions).to_dict("records"):
        told = shown(row)
        gain = with_interval(row["gain"], told["gain_low"], told["gain_high"])
        bound = told["gain_bound"]
        cells = [
            words(row["problem"]), number(row["r2_layer"]), number(row["r2_layer_all"]),
            gain if bound is None else f"{gain.removesuffix(')')}; {number(max(bound, 0.0))})",
            with_interval(row["cv_gain"], told["cv_gain_low"], told["cv_gain_high"]),
            with_interval(row["within_slope"], told["within_low"], told["within_high"]),
            costs.get((row["problem"], row["method"]), "–"),
            f"{row['n_facts']} x {row['n_layers']}",
        ]  # fmt: skip
        if not alike.empty:
            cells.append(number(alike["r2_layer_all"].get(row["problem"])))
        if theirs is not None:
            known = theirs.loc[row["problem"], ["r2_layer", "r2_trace", "r2_both"]]
            cells.append(", ".join(number(value) for value in known))
        lines.append(cells)
    return _table(lines) if alike.empty else f"{_table(lines)}\n\n{_null_block(alike)}"


def _at_their_depths(run: Finished) -> pd.DataFrame:
    """Rows of robustness.csv by problem: the regressions of edits at the run's robustness.layers alone; none where
    stage `robustness` did not ask for them.
    """
    if not (path := run.folder / "robustness.csv").is_file():
        return pd.DataFrame(columns=list(ROBUSTNESS_COLUMNS)).set_index("problem")
    table = read_made(path, ROBUSTNESS_COLUMNS, command="make robustness")
    first = headline(run.regressions)["method"].iloc[0]
    return table[(table["variation"] == "edited layers") & (table["method"] == first)].set_index("problem")


def _null_block(alike: pd.DataFrame) -> str:
    """How much of R² at the paper's depths is the block that cannot act."""
    (kept_low, kept_high), (low, high) = (
        (number(alike[name].min()), number(alike[name].max())) for name in ("r2_layer_all", "r2_layer")
    )
    return (
        f"At the relative depths of the paper's blocks, {alike['value'].iloc[0]} here, the layer explains {kept_low} "
        f"to {kept_high} with the block that cannot act, as in the paper's grid, and {low} to {high} without it: so "
        "much of such an R² says that one block does nothing, and not where the others stand."
    )


def _by_method(costs: dict[tuple[str, str], str]) -> str:
    """What editing at the traced layer costs against one fixed layer, a row a problem and a column a method."""
    methods = list(dict.fromkeys(method for _, method in costs))
    lines = [["traced layer loses, points", *map(method_label, methods)], ["---"] * (len(methods) + 1)]
    for problem in dict.fromkeys(problem for problem, _ in costs):
        lines.append([words(problem), *(costs.get((problem, method), "–") for method in methods)])
    return _table(lines)


def _lost(run: Finished) -> dict[tuple[str, str], str]:
    """(problem, method) to the hundredths of the score that the layer with the largest trace loses."""
    found, rows = {}, layers.section(of_tracing(run.choices), run.confidence)["rows"]
    for row in rows:
        if row["localizer"] == rows[0]["localizer"]:
            low, high = (None if end is None else 100 * end for end in (row["regret_low"], row["regret_high"]))
            found[row["problem"], row["method"]] = with_interval(100 * row["regret"], low, high, 1)
    return found


def _table(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
