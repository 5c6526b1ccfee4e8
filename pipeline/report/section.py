"""A section of the page as plain data, for those that stand on tables which not every run makes; the page's template
draws every one in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.report.plots import Plot


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page: what stands in its head and rows, as text, and what a reader must know to read it.

    groups: headings over several columns, each with its number of columns; () for none. The first column is the rows'
    heading. source: the CSV file below reports/ that has the same numbers and more. wraps: cells are texts, on several
    lines.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    groups: Sequence[tuple[str, int]] = ()
    source: str = ""
    wraps: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section: its place in the page's address, its heading, what it says, its tables and figures, in this order."""

    anchor: str
    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = field(default=())


def number(value: float, digits: int = 3) -> str:
    """A number as the page's tables have it, an en dash where there is none, and never minus 0."""
    return "–" if value != value else f"{round(value, digits) + 0:.{digits}f}"


def with_interval(mean: float, low: float, high: float, digits: int = 3) -> str:
    """A mean with its interval in brackets, or alone where there is none."""
    if low != low or high != high:
        return number(mean, digits)
    return f"{number(mean, digits)} ({number(low, digits)} to {number(high, digits)})"


def record(folder: Path, name: str) -> Path:
    """Where a stage of measures/dvc.yaml writes what its tables were made of."""
    return folder / "measures" / f"{name}.json"
