"""How every stage starts and ends: params in, one sentence and exit status 2 for a user's mistake, its seconds
written down.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from pipeline import params
from pipeline.errors import UserError
from pipeline.tables import write_json

TIMINGS = Path("data/timings")


def run_stage(name: str, main: Callable[[params.Params], None]) -> None:
    """Run one stage with the settings of params.yaml; does not return."""
    start = time.monotonic()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with Peak() as peak:
            main(params.load())
        seconds = round(time.monotonic() - start, 1)
        write_json({"stage": name, "seconds": seconds, "peak_gb": round(peak.gb, 2)}, TIMINGS / f"{name}.json")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, _Terminated) as stop:
        told = "interrupted" if isinstance(stop, KeyboardInterrupt) else "terminated"
        print(f"{told}; finished units are kept, and the next run goes on from them", file=sys.stderr)
        sys.exit(128 + (signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM))
    sys.exit(0)


class _Terminated(BaseException):
    """SIGTERM came, by which schedulers end a job that has to make room."""


def _terminate(*_: object) -> None:
    raise _Terminated


class Peak:
    """Within: the most memory that this process and its workers hold together, looked up once a second."""

    def __init__(self) -> None:
        self.gb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            held = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    info = process.memory_full_info()
                except psutil.Error:
                    continue  # it has ended meanwhile
                held += getattr(info, "pss", info.rss)  # pages that processes share count once
            self.gb = max(self.gb, held / 1024**3)
            if self._over.wait(1.0):
                return
