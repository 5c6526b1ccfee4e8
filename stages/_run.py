"""How every stage starts and ends: params in, one sentence and exit status 2 for a user's mistake, its seconds
written down.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import params
from pipeline.errors import UserError
from pipeline.tables import write_json

TIMINGS = Path("data/timings")


def run_stage(name: str, main: Callable[[params.Params], None]) -> None:
    """Run one stage with the settings of params.yaml; does not return."""
    start = time.monotonic()
    try:
        main(params.load())
        seconds = round(time.monotonic() - start, 1)
        peak_gb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 2)
        write_json({"stage": name, "seconds": seconds, "peak_gb": peak_gb}, TIMINGS / f"{name}.json")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; finished units are kept, and the next run goes on from them", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
