"""How figures look and are saved: the house style, panels, lines with bands, fitted lines.

Colors are seaborn's "colorblind" palette; lines differ in dash and marker too. The same tables give the same bytes: no
dates, and ids hashed with a fixed salt. Words are text, in DejaVu Sans or Verdana, which are as wide. A figure is drawn
twice, for a wide page and for a narrow one (`both_widths`), where its panels stand below each other: at 400 pixels its
letters are as large as the page's.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.disk import write_bytes

# The published scores are of the first paraphrase and the first neighborhood prompt: means over all get no paper row.
PAPER_SCORES = {"rewrite": "rewrite", "paraphrase_first": "paraphrase", "neighborhood_first": "neighborhood"}

_RC = {
    "svg.hashsalt": "localization-editing",
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 10.0,
    "legend.fontsize": 9.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
_SHORT = 18  # letters of a legend's entry, of which two fit beside each other on a narrow page
_DOTS = 150  # per inch: of what is drawn in pixels within vectors
_PLACES = re.compile(rb'(?<= )(?:d|x|y)="[^"]*"')  # attributes of an SVG whose numbers are points, 72 to an inch
_FINER = re.compile(rb"\d+\.\d{3,}")
NARROW = 4.0  # inches: the width of a figure for a narrow page
_IS_NARROW: ContextVar[bool] = ContextVar("narrow", default=False)
_Taken = ParamSpec("_Taken")
_Drawn = TypeVar("_Drawn", bound="Plot | None")
_MARKERS = "osD^vPX"
_DASHES: tuple[tuple[float, ...], ...] = (
    (), (4, 1.5), (1, 1), (3, 1, 1, 1), (5, 1, 1, 1, 1, 1), (6, 2), (2, 2),
)  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Seaborn's white grid with the house settings; glyphs that the font lacks become boxes, silently."""
    with mpl.rc_context(sns.axes_style("whitegrid") | _RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawn figure: `name` is its file name without ending, `title` and `caption` are plain text.

    data: the table that it was drawn from, None where its section's tables say where that is. narrow: the same for a
    narrow page, None where there is only the one.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    data: pd.DataFrame | None = None
    narrow: Figure | None = None

    def save(self, folder: Path, dpi: int) -> tuple[Path, Path]:
        """Write `name`.svg and `name`.png into `folder`, made if missing; return both paths."""
        svg, png = folder / f"{self.name}.svg", folder / f"{self.name}.png"
        _vectors(self.figure, svg)
        pixels = io.BytesIO()
        with style():
            self.figure.savefig(pixels, format="png", bbox_inches="tight", dpi=dpi, metadata={"Software": None})
        write_bytes(png, pixels.getvalue())
        return svg, png

    def save_narrow(self, folder: Path) -> Path | None:
        """Write `name`-narrow.svg into `folder`; its path, or None where the figure has no such form."""
        if self.narrow is None:
            return None
        path = folder / f"{self.name}-narrow.svg"
        _vectors(self.narrow, path)
        return path


def _vectors(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    with style():
        figure.savefig(content, format="svg", bbox_inches="tight", dpi=_DOTS, metadata={"Date": None, "Creator": None})
    write_bytes(path, _rounded(content.getvalue()))


def _rounded(svg: bytes) -> bytes:
    """The same drawing to hundredths of a point, finer than any screen or printer, in a tenth fewer bytes."""
    return _PLACES.sub(lambda place: _FINER.sub(lambda number: b"%.2f" % float(number[0]), place[0]), svg)


def both_widths(draw: Callable[_Taken, _Drawn]) -> Callable[_Taken, _Drawn]:
    """`draw`, whose Plot then has the figure for a narrow page too, drawn by the same function.

    `panels`, `legend_below`, `width_of`, `leftmost` and `narrow` answer for the page that is being drawn for.
    """

    @wraps(draw)
    def drawn(*args: _Taken.args, **named: _Taken.kwargs) -> _Drawn:
        wide = draw(*args, **named)
        if wide is None:
            return wide
        token = _IS_NARROW.set(True)
        try:
            again = draw(*args, **named)
        finally:
            _IS_NARROW.reset(token)
        return cast(_Drawn, replace(cast(Plot, wide), narrow=None if again is None else again.figure))

    return drawn


def narrow() -> bool:
    """Whether a figure is being drawn for a narrow page."""
    return _IS_NARROW.get()


def width_of(inches: float) -> float:
    """The width of a figure of one panel that takes so many inches of a wide page."""
    return NARROW if narrow() else inches


def leftmost(axes: Sequence[Axes], columns: int) -> Sequence[Axes]:
    """Those of the panels that stand first in their row, so that an axis that a row shares is labelled there."""
    return axes if narrow() else axes[::columns]


def bare(axes: Sequence[Axes], columns: int) -> None:
    """Take the labels of the vertical axis off the panels that are not first in their row."""
    first = set(leftmost(axes, columns))
    for ax in axes:
        if ax not in first:
            ax.set_yticklabels([])


def words(name: str) -> str:
    """A name of the tables as a reader's words: "error_injection" is "error injection"."""
    return name.replace("_", " ")


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them: "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def facts_phrase(count: int) -> str:
    """How many facts, in words that agree."""
    return f"{count} fact" if count == 1 else f"{count} facts"


def bands(ax: Axes, table: pd.DataFrame, hue: str, order: Sequence[str], value: str) -> None:
    """Draw a line with its interval band for each value of `hue`; columns layer, `value`, low and high.

    A value of `hue` has the color, dash and marker of its place in `order`, so that panels agree.
    """
    colors = sns.color_palette("colorblind", len(order))
    for i, name in enumerate(order):
        at = table[table[hue] == name].sort_values("layer")
        if at.empty:
            continue
        dashes = _DASHES[i % len(_DASHES)]
        (line,) = ax.plot(
            at["layer"], at[value], color=colors[i], lw=1.8, label=name, marker=_MARKERS[i % len(_MARKERS)],
            ms=4, markevery=max(len(at) // 10, 1), zorder=3,
        )  # fmt: skip
        if dashes:
            line.set_dashes(dashes)
        ax.fill_between(at["layer"], at["low"], at["high"], color=colors[i], alpha=0.15, lw=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def line_of(place: int, of: int) -> dict[str, Any]:
    """How the line is drawn that has this place among `of`: its color, dash and marker, for matplotlib's plot."""
    dashes, color = _DASHES[place % len(_DASHES)], sns.color_palette("colorblind", of)[place]
    marked = {"marker": _MARKERS[place % len(_MARKERS)], "ms": 4}
    return {"color": color, "lw": 1.8, "ls": (0, dashes) if dashes else "-", "zorder": 3, **marked}


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of `width` by `height` inches each, in rows of at most `columns`.

    For a narrow page, one below the other.
    """
    if narrow():
        columns, width = 1, NARROW
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in list(axes.flat)[count:]:
        ax.set_visible(False)
    return figure, list(axes.flat)[:count]


def legend_below(figure: Figure, ax: Axes) -> None:
    """One legend for the whole figure, under it, with the lines of one of its panels."""
    handles, labels = ax.get_legend_handles_labels()
    long = max(map(len, labels), default=0) > _SHORT
    columns = 3 if not narrow() else 1 if long else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3)


def fitted_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float] | None:
    """Intercept, slope and R² of the least-squares line through points; x and y of shape (n,).

    None where x does not vary; R² is 0 where y does not.
    """
    if len(x) < 2 or np.ptp(x) <= 1e-10 * max(float(np.abs(x).max()), 1e-300):
        return None
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    total = float(dy @ dy)
    r2 = min(slope**2 * float(dx @ dx) / total, 1.0) if total > 0 else 0.0
    return float(y.mean()) - slope * float(x.mean()), slope, r2
