"""The page: a document as one HTML file that works offline.

All text goes through Jinja's autoescape; figures and the tables they were drawn from are inlined as data URIs; the page
loads nothing and runs only the scripts of pipeline.report.scripts.
"""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.report.document import Document
from pipeline.report.explorer import Explorer
from pipeline.report.plots import Plot
from pipeline.report.scripts import licences, policy, scripts
from pipeline.report.section import Section
from pipeline.tables import csv_text

_SVG_LIMIT = 1_000_000  # bytes; a figure of more points than this is lighter as pixels
_NUMBER = re.compile(r"[<+−-]?[\d.,]+(e[+-]?\d+)?%?( \(.*\))?|–|[\d.−-]+ to [\d.−-]+")


class Picture(NamedTuple):
    """A saved figure: title and caption as plain text, its two files, and the table it was drawn from as CSV.

    narrow: its file for a narrow page, None where it has the one form only.
    """

    title: str
    caption: str
    svg: Path
    png: Path
    data: str = ""
    narrow: Path | None = None


def picture(plot: Plot, folder: Path, dpi: int) -> Picture:
    """Save a figure in `folder`."""
    data = "" if plot.data is None else csv_text(plot.data)
    return Picture(plot.title, plot.caption, *plot.save(folder, dpi), data, plot.save_narrow(folder))


def save(plots: Iterable[Plot], folder: Path, dpi: int) -> list[Picture]:
    """Save what was drawn in `folder`, and take away what earlier runs drew there and this one did not."""
    pictures = [picture(plot, folder, dpi) for plot in plots]
    kept = {path for one in pictures for path in (one.svg, one.png, one.narrow)}
    for path in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if path not in kept:
            path.unlink()
    return pictures


def render(document: Document, pictures: Sequence[Picture], explorer: Explorer, reports: Path) -> str:
    """The whole page as text.

    Parameters: the document, its figures as `save` left them, what `pipeline.report.explorer` packed, and the folder
    below which the tables' CSV files are; one that is not there is named and not linked to.
    """
    code = scripts()
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            document=document,
            policy=policy(code),
            scripts=code,
            licences=licences(),
            explorer=explorer,
            **_inlined(document.all, pictures, reports),
        )
    )


def render_sections(title: str, answer: str, sections: Sequence[Section], pictures: Sequence[Picture]) -> str:
    """A page of sections under one sentence, with no explorer; figures are linked to their data, tables to none."""
    code = scripts(names=("scripts/tables.js",))
    return (
        _environment()
        .get_template("sections.html.j2")
        .render(
            title=title,
            answer=answer,
            sections=sections,
            policy=policy(code),
            scripts=code,
            **_inlined((), pictures, Path()),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"marked": _marked, "numeric": _numeric, "broken": _broken}
    return environment


def _inlined(sections: Sequence[Section], pictures: Sequence[Picture], reports: Path) -> dict[str, Any]:
    """What a template shows of figures, and of tables that are CSV files below `reports`, all of it as data URIs."""
    data = _data(sections, pictures, reports)
    return {
        "pictures": {
            one.svg.stem: one._asdict() | {"uri": _data_uri(one), "narrow": _narrow_uri(one), "name": one.svg.stem}
            for one in pictures
        },
        "data": data,
        "files": [
            (anchor, f"{name}.gz", _uri("application/gzip", gzip.compress(text.encode(), mtime=0)))
            for anchor, name, text in data["files"]
        ],
    }


def _data(sections: Sequence[Section], pictures: Sequence[Picture], reports: Path) -> dict[str, Any]:
    """The CSV texts that stand in the page, each once: `files`, and which of them a table or figure is linked to."""
    files: list[tuple[str, str, str]] = []
    anchors: dict[str, str] = {}

    def anchor(name: str, text: str) -> str:
        if text not in anchors:
            anchors[text] = f"data-{name.removesuffix('.csv')}"
            files.append((anchors[text], name, text))
        return anchors[text]

    names = dict.fromkeys(table.source for section in sections for table in section.tables if table.source)
    there = [name for name in names if (reports / name).is_file()]
    of_tables = {name: anchor(name, (reports / name).read_text("utf-8")) for name in there}
    drawn = {one.svg.stem: anchor(f"figure-{one.svg.stem}.csv", one.data) for one in pictures if one.data}
    return {"files": files, "tables": of_tables, "figures": drawn}


def _marked(text: str) -> Markup:
    """Words between ** in bold, all else as it is."""
    parts = text.split("**")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup("").join(Markup("<b>{}</b>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts))


def _numeric(cell: str) -> bool:
    """Whether a cell is a number, or a number with more in brackets, and so stands at the right."""
    return bool(_NUMBER.fullmatch(cell))


def _broken(name: str) -> Markup:
    """A dotted name that may be broken after each dot."""
    return Markup(".<wbr>").join(name.split("."))


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _narrow_uri(picture: Picture) -> str:
    """The form for a narrow page, "" where there is none or it is too heavy."""
    path = picture.narrow
    return "" if path is None or path.stat().st_size > _SVG_LIMIT else _uri("image/svg+xml", path.read_bytes())


def _data_uri(picture: Picture) -> str:
    path, kind = picture.svg, "svg+xml"
    if path.stat().st_size > _SVG_LIMIT:
        path, kind = picture.png, "png"
    return _uri(f"image/{kind}", path.read_bytes())
