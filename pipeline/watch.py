"""A stage as the machine sees it: that it is at work on data/, what a killed one left there, how much memory it holds,
how much of its work was there already, and with what versions it works.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from pipeline.errors import UserError

IN_USE = Path("data/.in-use")
LIBRARIES = ("torch", "transformers", "numpy", "pandas", "scipy", "statsmodels")  # that numbers may depend on


@contextlib.contextmanager
def in_use(*, alone: bool = False) -> Iterator[None]:
    """Within: this process works on data/. Any number may, unless one wants to be `alone`.

    The system forgets it when the process ends, however it ends. Raises UserError where alone can't be had.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(IN_USE.open("ab"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except BlockingIOError:
            raise UserError(
                f"a stage is running on {IN_USE.parent}, which removing might disturb; wait for its end"
            ) from None
        except OSError:  # a read-only folder, or a file server that knows no locks: it was only a precaution
            pass
        yield


def tidy(*roots: Path, leave: Path) -> None:
    """Remove what processes that were killed had begun to write below `roots`, but for the folder `leave`.

    That is what has the name .NAME.PID (pipeline.disk, pipeline.compute.statistics) of a process that is no more.
    """
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if Path(folder, name) != leave]
            for name in (*folders, *files):
                match = re.fullmatch(r"\..+\.(\d{1,9})", name)
                if match and not psutil.pid_exists(int(match[1])):
                    path = Path(folder, name)
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Version of Python and of each of LIBRARIES that is installed."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


class Work:
    """How many units of work this process was asked for, how many it found to be done, and by what code.

    code: names of modules, with a blank between them, to the hash of what their import closure does.
    """

    asked = found = 0
    code: ClassVar[dict[str, str]] = {}

    @classmethod
    def count(cls, asked: int, found: int) -> None:
        cls.asked, cls.found = cls.asked + asked, cls.found + found


class Peak:
    """Within: the most memory that this process and its workers hold together, in GiB, and the CPU seconds that they
    took, looked up once a second. Seconds on a clock depend on what else the machine does, CPU seconds hardly.

    What processes share, such as libraries, counts once, as the largest share of any of them: to ask the system for
    more than that takes it tens of milliseconds a process, in which the process can't get memory.
    """

    def __init__(self) -> None:
        self.gb = 0.0
        self._cpu: dict[int, float] = {}
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

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu.values())

    def _watch(self) -> None:
        me, over = psutil.Process(), False
        while True:
            held = shared = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    info, times = process.memory_info(), process.cpu_times()
                except psutil.Error:
                    continue  # it has ended meanwhile
                common = getattr(info, "shared", 0)  # Linux alone knows
                held, shared = held + info.rss - common, max(shared, common)
                self._cpu[process.pid] = times.user + times.system
            self.gb = max(self.gb, (held + shared) / 1024**3)
            if over:
                return
            over = self._over.wait(1.0)  # and once more at the end
