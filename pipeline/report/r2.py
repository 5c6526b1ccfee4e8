"""The report's tables of regressions: the headline's beside the paper's, and all others in one that can be sorted.

What is withheld by `pipeline.analysis.trust` is a dash here; reports/regressions.csv has every number.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from pipeline.analysis.trust import shown
from pipeline.report.answer import VARIANT, headline
from pipeline.report.plots import PAPER_SCORES, words
from pipeline.report.section import Table, chance, number, spread
from pipeline.words import method_label

_PAPER = ("r2_layer", "r2_trace", "r2_both", "r2_diff")
_OURS = ("r2_layer", "r2_trace", "r2_both", "r2_diff")


def r2_tables(regressions: pd.DataFrame, paper: pd.DataFrame) -> list[dict[str, Any]]:
    """The tables of the page, the headline's first: name, rows, notes.

    A row holds ours, without what is withheld, and the paper's or None.
    """
    first = headline(regressions).iloc[0]
    groups = list(regressions.groupby([*VARIANT, "score"], sort=False))
    # A stable sort: only the headline's table moves, to the front.
    groups.sort(key=lambda item: item[0] != tuple(first[[*VARIANT, "score"]]))
    published = {
        (row["method"].lower(), row["score"], row["problem"]): row
        for row in paper.astype(object).where(paper.notna(), None).to_dict("records")
    }
    tables = []
    for (method, module, window, measure, score), group in groups:
        rows, notes = [], []
        for ours in group.to_dict("records"):
            theirs = published.get((str(method).lower(), PAPER_SCORES.get(score), ours["problem"]))
            if theirs is not None and theirs["note"]:
                notes.append(f"{words(ours['problem'])}: {theirs['note']}")
            rows.append({"ours": shown(ours), "paper": theirs})
        variant = f"{words(measure)}, {module}, window {window}"
        name = f"{words(score).capitalize()} score, {method_label(str(method))}; trace: {variant}"
        tables.append({"name": name, "rows": rows, "notes": notes, "paper": any(row["paper"] for row in rows)})
    return tables


def headline_tables(table: Mapping[str, Any], confidence: str) -> list[Table]:
    """The first of `r2_tables` as two tables: R² beside the paper's, and what facts allow to say."""
    ours = [row["ours"] for row in table["rows"]]
    problems = [words(str(row["problem"])) for row in ours]
    notes = f"On the paper's figures here: {'; '.join(table['notes'])}." if table["notes"] else ""
    groups = [("", 1), ("this run", 5), ("null layers kept", 2)]
    head = ["problem", "layer", "trace", "both", "added", "layers", "layer", "both"]
    if table["paper"]:
        groups.append(("the paper, GPT-J", 5))
        head += ["layer", "trace", "both", "added", "p, F\u2011test"]
    rows = []
    for name, row in zip(problems, table["rows"], strict=True):
        own, theirs = row["ours"], row["paper"] or {}
        cells = [name, *(number(own[key]) for key in _OURS), str(own["n_layers"])]
        cells += [number(own["r2_layer_all"]), number(own["r2_both_all"])]
        if table["paper"]:
            cells += [*(number(theirs.get(key)) for key in _PAPER), theirs.get("p_value") or "–"]
        rows.append(cells)
    first = Table(title=table["name"], head=head, groups=groups, rows=rows, note=notes, source="regressions.csv")
    columns = [entry for entry in _allowed(confidence) if entry[1] not in _OURS]
    second = Table(
        title=f"{table['name']}: what facts allow to say",
        head=["problem", *(name for name, _, _ in columns)],
        groups=[("", 1), ("added over chance", 6), ("within a fact", 3), ("held-out facts", 2), ("sample", 2)],
        rows=[
            [name, *(tell(row) for _, _, tell in columns)] for name, row in zip(problems, ours, strict=True)
        ],
        source="regressions.csv",
    )  # fmt: skip
    return [first, second]


def all_table(tables: Sequence[Mapping[str, Any]], confidence: str) -> Table:
    """All of `r2_tables` in one table, a row a regression; its columns of words can be filtered by."""
    columns = _allowed(confidence)
    rows, notes = [], []
    for table in tables:
        notes += [note for note in table["notes"] if note not in notes]
        for row in table["rows"]:
            ours, theirs = row["ours"], row["paper"] or {}
            rows.append(
                [
                    words(str(ours["problem"])),
                    words(str(ours["score"])),
                    method_label(str(ours["method"])),
                    f"{words(str(ours['trace_measure']))}, {ours['trace_module']}, window {ours['trace_window']}",
                    *(number(ours[key]) for key in _OURS),
                    str(ours["n_layers"]),
                    *(tell(ours) for _, _, tell in columns),
                    number(theirs.get("r2_layer")),
                    number(theirs.get("r2_diff")),
                ]
            )
    return Table(
        title="All regressions",
        head=[
            "problem", "score", "method", "trace", "layer", "trace alone", "both", "added", "layers",
            *(name for name, _, _ in columns), "paper: layer", "paper: added",
        ],
        groups=[
            ("", 4), ("R²", 5), ("added over chance", 6), ("within a fact", 3), ("held-out facts", 2), ("sample", 2),
            ("GPT-J", 2),
        ],
        rows=rows,
        note=f"On the paper's figures: {'; '.join(notes)}." if notes else "",
        source="regressions.csv",
        filters=(0, 1, 2, 3),
    )  # fmt: skip


def _allowed(confidence: str) -> list[tuple[str, str, Callable[[Mapping[str, Any]], str]]]:
    """Heading, column and cell of what facts allow to say of a regression."""

    def plain(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: number(row[key])

    def p(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: chance(row[key])

    def ends(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: spread(row[f"{key}_low"], row[f"{key}_high"])

    return [
        ("by chance", "chance", plain("chance")), ("gain", "gain", plain("gain")),
        (f"{confidence} interval", "gain_low", ends("gain")), ("at most", "gain_bound", plain("gain_bound")),
        ("p", "permutation_pvalue", p("permutation_pvalue")), ("p, Holm", "permutation_holm", p("permutation_holm")),
        ("slope", "within_slope", plain("within_slope")), (f"{confidence} interval", "within_low", ends("within")),
        ("p, Holm", "within_holm", p("within_holm")), ("gain", "cv_gain", plain("cv_gain")),
        (f"{confidence} interval", "cv_gain_low", ends("cv_gain")),
        ("facts", "n_facts", lambda row: str(row["n_facts"])),
        ("relations", "n_relations", lambda row: str(row["n_relations"])),
    ]  # fmt: skip
