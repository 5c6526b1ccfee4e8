"""reports/report.md: a document for reading on a forge, with the page's sentences, tables and figures.

Figures and CSV files are linked to by where they lie beside it. Text of the tables is escaped, so that no subject's
name is markup (GitHub Flavored Markdown, "Tables" and "Backslash escapes").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.report.document import Document
from pipeline.report.page import Picture
from pipeline.report.section import Section, Table

_MARKUP = re.compile(r"([\\`*_\[\]<>|~#&$])")


def render(document: Document, pictures: Sequence[Picture], reports: Path) -> str:
    """The document as Markdown, to lie in the folder `reports`."""
    drawn = {picture.svg.stem: picture for picture in pictures}
    lines = [f"# {_text(document.title)}", "", f"**{_text(document.answer)}**", ""]
    lines += [
        "[One page to explore](report.html): this report with every fact's traces and edits; save it and open it.",
        "",
    ]
    lines += [f"* [{_text(section.title)}](#{slug(section.title)})" for section in document.all]
    for section in document.all:
        lines += ["", f"## {_text(section.title)}", "", *_section(section, drawn, reports, section is document.opening)]
    return "\n".join(lines).rstrip() + "\n"


def slug(title: str) -> str:
    """The anchor that a forge gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _section(section: Section, drawn: dict[str, Picture], reports: Path, opening: bool) -> list[str]:
    tables = [line for table in section.tables for line in _table(table, reports, section.title)]
    figures = [line for plot in section.plots for line in _figure(drawn[plot.name], reports, section.title)]
    said = [line for text in section.paragraphs for line in (_marked(text), "")]
    points = [f"* {_marked(text)}" for text in section.points]
    return [*figures, *tables, *said, *points] if opening else [*said, *tables, *points, "", *figures]


def _table(table: Table, reports: Path, under: str) -> list[str]:
    head = list(table.head) or ["", ""]
    above = [heading for heading, columns in table.groups for _ in range(columns)] or [""] * len(head)
    named = [f"{group}: {name}" if group else name for group, name in zip(above, head, strict=True)]
    lines = [*_heading(table.title, under), _row(named), _row(["---"] * len(head), plain=True)]
    lines += [_row(row) for row in table.rows]
    told = [_marked(table.note)] if table.note else []
    if table.source:
        there = (reports / table.source).is_file()
        told.append(f"Data: [{table.source}]({table.source})." if there else f"reports/{table.source} has the numbers.")
    return [*lines, "", *([" ".join(told), ""] if told else [])]


def _row(cells: Iterable[str], *, plain: bool = False) -> str:
    return f"| {' | '.join(cell if plain else _text(cell) for cell in cells)} |"


def _heading(title: str, under: str) -> list[str]:
    return [] if title == under else [f"### {_text(title)}", ""]


def _figure(picture: Picture, reports: Path, under: str) -> list[str]:
    path = picture.svg.relative_to(reports).as_posix() if picture.svg.is_relative_to(reports) else picture.svg.name
    return [*_heading(picture.title, under), f"![{_text(picture.title)}]({path})", "", _text(picture.caption), ""]


def _marked(text: str) -> str:
    """Text whose ** stay what they are: bold."""
    return "**".join(_text(part) for part in text.split("**"))


def _text(text: str) -> str:
    """Text on one line, in which nothing is markup."""
    return _MARKUP.sub(r"\\\1", re.sub(r"\s+", " ", text))
