"""A section of the page as plain data; the page's template and reports/report.md draw every one in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.report.plots import Plot


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page: what stands in its head and rows, as text, and what a reader must know to read it.

    groups: headings over several columns, each with its number of columns; () for none. The first column is the rows'
    heading. In the note, words between ** are bold. source: the CSV file below reports/ that has the same numbers and
    more. wraps: cells are texts, on several lines. filters: columns that readers pick values of; a table that has any
    can be sorted too. An empty head: a list of names and values. folded: shown when it is asked for.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    groups: Sequence[tuple[str, int]] = ()
    source: str = ""
    wraps: bool = False
    filters: Sequence[int] = ()
    folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section: its place in the page's address, its heading, what it says, its tables and figures, in this order.

    points: a list after the paragraphs, in which words between ** are bold, as in the paragraphs.
    """

    anchor: str
    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = field(default=())
    points: Sequence[str] = ()


def number(value: float | None, digits: int = 3) -> str:
    """A number as the page's tables have it, an en dash where there is none, and never minus 0."""
    return "–" if value is None or value != value else f"{round(value, digits) + 0:.{digits}f}"


def spread(low: float | None, high: float | None, digits: int = 3) -> str:
    """An interval, an en dash where there is none."""
    missing = low is None or high is None or low != low or high != high
    return "–" if missing else f"{number(low, digits)} to {number(high, digits)}"


def chance(p: float | None) -> str:
    """A p-value as the page's tables have it, an en dash where there is none."""
    if p is None or p != p:
        return "–"
    return "<1e-4" if p < 1e-4 else f"{p:.4f}"


def with_interval(mean: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """A mean with its interval in brackets, or alone where there is none."""
    told = spread(low, high, digits)
    return number(mean, digits) if told == "–" else f"{number(mean, digits)} ({told})"


def record(folder: Path, name: str) -> Path:
    """Where a stage of measures/dvc.yaml writes what its tables were made of."""
    return folder / "measures" / f"{name}.json"
