"""How figures look and are saved: the house style, panels, lines with bands, fitted lines.

Colors are seaborn's "colorblind" palette; lines differ in dash and marker too. The same tables give the same
bytes: no dates, and ids hashed with a fixed salt.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    "svg.fonttype": "path",
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 10.0,
    "legend.fontsize": 9.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
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

    data: the table that it was drawn from, None where its section's tables say where that is.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    data: pd.DataFrame | None = None

    def save(self, folder: Path, dpi: int) -> tuple[Path, Path]:
        """Write `name`.svg and `name`.png into `folder`, made if missing; return both paths."""
        svg, png = folder / f"{self.name}.svg", folder / f"{self.name}.png"
        vectors, pixels = io.BytesIO(), io.BytesIO()
        with style():
            self.figure.savefig(vectors, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
            self.figure.savefig(pixels, format="png", bbox_inches="tight", dpi=dpi, metadata={"Software": None})
        write_bytes(svg, vectors.getvalue())
        write_bytes(png, pixels.getvalue())
        return svg, png


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
    """A figure with `count` panels of `width` by `height` inches each, in rows of at most `columns`."""
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
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, handlelength=3)


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
