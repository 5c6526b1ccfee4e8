"""What is done of a run and what is left: units in the store against the units that jobs ask for.

Seconds a unit are estimated from the times at which the store's files were written, without anything kept for the
purpose: the time between the first and the last unit of the step's latest burst, divided by the units written in it
after its first. A burst ends at a pause of more than a minute that is also ten times as long as most (three
quarters) of the gaps between units. So the figure holds for as many workers as wrote that burst, takes the
loading of the model for nothing, and is unknown for a step with fewer than two units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.compute.store import Entry
from pipeline.compute.work import Unit
from pipeline.progress import clock

_PAUSE, _GAPS = 60.0, 10.0  # a pause ends a burst where it is longer than both, in seconds and in common gaps


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a step has and lacks. seconds: a unit; None where unknown. guessed: the seconds are other steps'.

    waits: "STAGE: why" where its units are not known; the numbers then say nothing. damaged: files that hold no
    readable unit; they count as not done.
    """

    step: str
    waits: str = ""
    units: int = 0
    done: int = 0
    seconds: float | None = None
    guessed: bool = False
    size: int = 0
    damaged: int = 0

    @property
    def left(self) -> int:
        return self.units - self.done

    @property
    def seconds_left(self) -> float | None:
        return 0.0 if self.left == 0 else None if self.seconds is None else self.seconds * self.left


@dataclass(frozen=True)
class Survey:
    """Steps in their order, the (step, key) of all that is needed, and the entries that are not."""

    lines: list[Line]
    needed: set[tuple[str, str]]
    others: list[Entry]

    @property
    def waiting(self) -> Line | None:
        """The first step whose units are not known; while there is one, an entry among `others` may be its."""
        return next((line for line in self.lines if line.waits), None)


def survey(
    entries: Sequence[Entry], steps: Mapping[str, Sequence[Unit] | str], kept: Collection[tuple[str, str]] = ()
) -> Survey:
    """Count `entries` against the units of each step; a text in place of units says what the step waits for.

    kept: (step, key) of what is needed too where it is there, and not missed where it isn't.
    """
    stored: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        stored.setdefault((entry.step, entry.key), []).append(entry)
    needed = set(kept) | {
        (step, unit.key) for step, units in steps.items() if not isinstance(units, str) for unit in units
    }
    lines = []
    for step, units in steps.items():
        if isinstance(units, str):
            lines.append(Line(step=step, waits=units))
            continue
        files = [entry for unit in units for entry in stored.get((step, unit.key), [])]
        done = {entry.key for entry in files if entry.label}
        seconds = rate([entry.mtime for entry in files])
        if seconds is None:  # units of other settings tell something too
            seconds = rate([entry.mtime for entry in entries if entry.step == step])
        lines.append(
            Line(
                step=step, units=len(units), done=len(done), seconds=seconds,
                size=sum(entry.size for entry in files), damaged=sum(not entry.label for entry in files),
            )
        )  # fmt: skip
    others = [entry for key, found in stored.items() if key not in needed for entry in found]
    return Survey([_guessed(line, lines) for line in lines], needed, others)


def _guessed(line: Line, lines: Sequence[Line]) -> Line:
    """A step of edits without a rate of its own takes the mean of the others with the same method."""
    family = line.step.rpartition("-")[0]
    rates = [other.seconds for other in lines if other.seconds is not None and other.step.startswith(f"{family}-")]
    if line.waits or line.seconds is not None or not family or not rates:
        return line
    return Line(**{**vars(line), "seconds": sum(rates) / len(rates), "guessed": True})


def rate(times: Sequence[float]) -> float | None:
    """Seconds a unit, from the times at which units were written; None for fewer than two."""
    times = sorted(times)
    if len(times) < 2:
        return None
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    common = sorted(gaps)[math.floor(0.75 * (len(gaps) - 1))]
    pause = max(_PAUSE, _GAPS * common)
    first = max((i + 1 for i, gap in enumerate(gaps) if gap > pause), default=0)
    if first == len(times) - 1:  # the last burst has but one unit: the one before tells more
        return rate(times[:-1])
    return (times[-1] - times[first]) / (len(times) - 1 - first)


def size(count: int) -> str:
    """Bytes as people read them: 812 B, 1.2 MB."""
    if count < 1000:
        return f"{count} B"
    power = min(4, int(math.log10(count)) // 3)
    return f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"


def files(count: int, bytes_: int) -> str:
    """ "3 files, 1.2 MB"."""
    return f"{count} file{'' if count == 1 else 's'}, {size(bytes_)}"


def render(found: Survey, *, shared: bool = False) -> str:
    """The survey as a table and a few lines of text. shared: other projects may use the store."""
    head = ("step", "done", "left", "s/unit", "time left", "size")
    rows = [_row(line) for line in found.lines if not line.waits]
    counted = [line for line in found.lines if not line.waits]
    times = [line.seconds_left for line in counted]
    known = [time for time in times if time is not None]
    total = "?" if not known else clock(sum(known)) + (" + ?" if None in times or found.waiting else "")
    done, units = sum(line.done for line in counted), sum(line.units for line in counted)
    rows.append(("total", f"{done}/{units}", str(units - done), "", total, size(sum(line.size for line in counted))))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    table = [_aligned(row, widths) for row in (head, *rows)]
    waiting = [line for line in found.lines if line.waits]
    told = [f"{line.step}: waits for {line.waits.partition(':')[0]}" for line in waiting]
    told += dict.fromkeys(line.waits for line in waiting)  # each reason once
    told += [
        f"{line.step}: {line.damaged} of its files can't be read; the next run computes them again"
        for line in found.lines
        if line.damaged
    ]
    if any(line.guessed for line in counted):
        told.append("~ is taken from the other edit steps")
    others = files(len(found.others), sum(entry.size for entry in found.others))
    if found.waiting:
        told.append(f"not needed by what is known so far: {others}; which of these can go is known once nothing waits")
    elif shared:
        told.append(f"not needed by this project: {others}; other projects may share the store, so all of them stay")
    else:
        told.append(f"needed by no current setting: {others}" + ("; make prune removes them" if found.others else ""))
    return "\n".join([*table, *told])


def _row(line: Line) -> tuple[str, ...]:
    seconds = "?" if line.seconds is None else f"{'~' * line.guessed}{line.seconds:.3g}"
    left = "?" if line.seconds_left is None else clock(line.seconds_left)
    return line.step, f"{line.done}/{line.units}", str(line.left), seconds, left, size(line.size)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    name, *cells = row
    return "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])
