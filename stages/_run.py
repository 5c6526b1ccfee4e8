"""How every stage starts and ends: params in, one sentence and exit status 2 for a user's mistake, its seconds, memory
and library versions written down.
"""

from __future__ import annotations

import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.errors import UserError
from pipeline.settings import params
from pipeline.tables import write_json
from pipeline.watch import Peak, in_use

TIMINGS = Path("data/timings")
LIBRARIES = ("torch", "transformers", "numpy", "pandas", "scipy", "statsmodels")


def run_stage(name: str, main: Callable[[params.Params], None], methods: Mapping[str, type] | None = None) -> None:
    """Run one stage with the settings of params.yaml; does not return. methods: as for `params.load`."""
    start = time.monotonic()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with in_use(), Peak() as peak:
            main(params.load(methods=methods))
        seconds = round(time.monotonic() - start, 1)
        made = {"stage": name, "seconds": seconds, "peak_gb": round(peak.gb, 2), "versions": _versions()}
        write_json(made, TIMINGS / f"{name}.json")
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


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
