"""A job whose units write down who computes them, and can die of it: for tests of what the engine makes of that.

`python -m tests.compute.marks ADDRESS [NUMBER]` is a stage that runs such a job by Ray; the unit NUMBER ends in an
error.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipeline.compute import engine
from pipeline.compute.keys import key
from pipeline.compute.store import Store
from pipeline.compute.work import Unit
from pipeline.edit import methods
from pipeline.errors import UserError
from pipeline.lm.memory import budget
from pipeline.settings.params import Params

ROOT = Path(__file__).parents[2]


def settings(**compute: Any) -> Params:
    """The smoke preset with other keys of `compute`."""
    smoke = methods.load(ROOT / "presets" / "smoke.yaml")
    return smoke.model_copy(update={"compute": smoke.compute.model_copy(update=compute)})


@dataclass(frozen=True)
class Marks:
    """Units that write into a file of their own, each time they are computed, the process that does it.

    what: what happens to a unit by its number, beside that.
    """

    folder: Path
    what: dict[int, str]
    count: int = 6
    seconds: float = 0.0
    params: Params = field(default_factory=lambda: settings(engine="ray", workers=2))
    step = "marks"
    noun = "units"

    def units(self) -> list[Unit]:
        return [Unit(key(unit=i), f"unit {i}", i) for i in range(self.count)]

    def worker(self) -> Any:
        if self.what.get(-1) == "dies":  # while it loads
            os.kill(os.getpid(), signal.SIGKILL)

        def compute(unit: Unit) -> pa.Table:
            with (self.folder / str(unit.item)).open("a") as file:
                file.write(f"{os.getpid()}\n")
            what = self.what.get(unit.item, "")
            if what == "dies" or (what == "dies once" and len(self.by(unit.item)) == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "crashes once" and len(self.by(unit.item)) == 1:
                os.kill(os.getpid(), signal.SIGSEGV)
            if what == "is wrong":
                raise ZeroDivisionError(f"at {unit.label}")
            if what == "refuses":
                raise UserError(f"{unit.label} is wrong and should be right")
            time.sleep(self.seconds)
            share = budget(1000, torch.device("cpu"), gradient=False) / 1000
            threads = str(self.params.compute.threads)
            return pa.table({"unit": [unit.item], "threads": [threads], "share": [share]})

        return compute

    def by(self, unit: int) -> list[int]:
        """The processes that began to compute a unit."""
        path = self.folder / str(unit)
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def all(self) -> list[list[int]]:
        return [self.by(unit) for unit in range(self.count)]


def main(_: Params) -> None:
    address, *wrong = sys.argv[1:]
    what = {int(number): "refuses" for number in wrong}
    job = Marks(Path("marks"), what, seconds=1.0, params=settings(engine="ray", workers=2, address=address))
    print(engine.run(job, Store("store"), (1, 1)).num_rows)


if __name__ == "__main__":
    from stages._run import run_stage
    from tests.compute import marks  # under the name by which workers find it, instead of __main__

    run_stage("marks", marks.main)
