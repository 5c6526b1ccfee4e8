"""How every stage starts and ends: params in, one sentence and exit status 2 for a user's mistake, its seconds, memory
and library versions written down.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.closure import code_version, source
from pipeline.errors import UserError
from pipeline.settings import params
from pipeline.tables import write_json
from pipeline.watch import Peak, Work, in_use, tidy, versions

TIMINGS = Path("data/timings")


def run_stage(name: str, main: Callable[[params.Params], None], methods: Mapping[str, type] | None = None) -> None:
    """Run one stage with the settings of params.yaml; does not return. methods: as for `params.load`.

    What is written down is of the run that computed the numbers: one that finds all units done leaves it as it is.
    """
    start = time.monotonic()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with in_use(), Peak() as peak:
            tidy(Path("data"), Path("reports"), leave=Path("data/store"))
            main(params.load(methods=methods))
        path, seconds = TIMINGS / f"{name}.json", round(time.monotonic() - start, 1)
        if not (Work.asked and Work.asked == Work.found and path.exists()):
            used = {"seconds": seconds, "cpu_seconds": round(peak.cpu_seconds, 1), "peak_gb": round(peak.gb, 2)}
            code = Work.code or ({own: code_version(own)} if source(own := f"stages.{name}") else {})
            write_json({"stage": name, **used, "code": code, "versions": versions()}, path)
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
