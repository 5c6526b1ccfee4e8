"""How far a long stage is: a bar with the time left in a terminal, a few plain lines in a log.

Everything goes to standard error, so that it never mixes with what a command prints as its result.
"""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

# In a log: this many lines over the whole way, and where a tenth takes long, one in this many seconds.
_LINES = 10
_SECONDS = 30.0


def say(text: str) -> None:
    """Print one line of plain text on standard error, above a bar that may be there."""
    # nolock: a worker that dies inside a bar's update must not silence the others.
    tqdm.write(text, file=sys.stderr, nolock=True)
    sys.stderr.flush()


def clock(seconds: float) -> str:
    """Seconds as people read them: 0:07, 3:42, 1:03:42."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts the units of one piece of work; made by `track`, used in a `with` statement."""

    def __init__(self, total: int, description: str, unit: str, stream: TextIO) -> None:
        self.total = total
        self.done = 0
        self._description = description
        self._unit = unit
        self._stream = stream
        self._bar: tqdm | None = None
        self._start = self._told_at = time.monotonic()
        self._told = 0

    def __enter__(self) -> Self:
        self._start = self._told_at = time.monotonic()
        if self._stream.isatty():
            self._bar = tqdm(
                total=self.total,
                desc=self._description,
                unit=f" {self._unit}",
                file=self._stream,
                dynamic_ncols=True,
                # A mean over the whole run: units differ, and the last few say little about those to come.
                smoothing=0.0,
            )
        else:
            self._line(f"{self.total} {self._unit} to do")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._told != self.done or kind is not None:
            self._report("stopped at " if kind is not None else "")

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
            return
        far = _LINES * self.done // self.total > _LINES * self._told // self.total
        long = time.monotonic() - self._told_at >= _SECONDS
        if self.done > self._told and (far or long):
            self._report()

    def _report(self, prefix: str = "") -> None:
        self._told, self._told_at = self.done, time.monotonic()
        elapsed = self._told_at - self._start
        left = f", {clock(elapsed / self.done * (self.total - self.done))} left" if 0 < self.done < self.total else ""
        self._line(f"{prefix}{self.done}/{self.total} {self._unit}, {clock(elapsed)} elapsed{left}")

    def _line(self, text: str) -> None:
        print(f"{self._description}: {text}", file=self._stream, flush=True)


def track(total: int, description: str, unit: str) -> Progress:
    """Progress over `total` units of work, such as `track(12, "trace", "facts")`.

    Use it as `with track(...) as progress:` and call `progress.advance()` after each unit. With standard
    error on a terminal it is a bar with the time left; elsewhere plain lines with done/total, time elapsed
    and time left: one for each tenth of the way, and where a tenth takes longer, one in 30 seconds.
    """
    return Progress(total, description, unit, sys.stderr)
