"""What becomes of a unit whose worker died, whichever engine it worked for.

A worker that the system ends, as it does when memory runs out (SIGKILL, exit 137), leaves no error to catch. Its unit
is tried once more by a new worker that takes half the memory for its batches; a unit that costs a second worker is left
out, the others go on, and the stage ends with a sentence that names what is missing. No table stands for such a unit,
so the next run tries it again.
"""

from __future__ import annotations

from collections import Counter

from pipeline.compute.work import Job, Unit
from pipeline.errors import UserError
from pipeline.progress import say

SMALLER = 0.5  # of the memory for batches, for a worker that takes the place of one that ran out of it
TRIES = {True: 2, False: 3}  # of a unit: where memory is what its workers lack, and where it is something else
IN_A_ROW = 3  # units given up, or models not loaded, without a unit finished in between: nothing will be
NAMED = 5  # units that the last sentence names


class Losses:
    """Counts the workers that a run loses. setting: what to change in params.yaml where memory runs out."""

    def __init__(self, job: Job, setting: str):
        self.job, self.setting = job, setting
        self.given_up: dict[str, str] = {}  # label -> how its last worker ended
        self._of_unit: Counter[str] = Counter()
        self._loading = self._in_a_row = 0

    def finished(self) -> None:
        """A unit was computed, so the rest may be."""
        self._loading = self._in_a_row = 0

    def lost(self, unit: Unit | None, how: str, *, memory: bool) -> bool:
        """Count a worker that died, with `unit` or while it loaded the model; whether to try that again.

        how: how it ended, to follow "a worker". memory: whether for want of memory, as far as can be told. Raises
        UserError where trying further is no use.
        """
        if unit is None:
            self._loading += 1
            if self._loading >= IN_A_ROW:
                raise UserError(
                    f"{self._loading} workers of {self.job.step} died one after the other while they loaded the model; "
                    f"the last {how}; if memory ran out, {self.setting}"
                )
            say(f"a worker of {self.job.step} {how} while it loaded the model; a new one is started")
            return True
        self._of_unit[unit.key] += 1
        if self._of_unit[unit.key] < TRIES[memory]:
            then = "it is tried once more, with half the memory for its batches" if memory else "it is tried again"
            say(f"a worker of {self.job.step} {how} at {unit.label}; {then}")
            return True
        self.given_up[unit.label] = how
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            self.end()
        say(f"a worker of {self.job.step} {how} at {unit.label} again; the others go on without it")
        return False

    def end(self) -> None:
        """Raise UserError where units were given up."""
        if not self.given_up:
            return
        labels = list(self.given_up)
        named = ", ".join(labels[:NAMED]) + (f" and {len(labels) - NAMED} more" if len(labels) > NAMED else "")
        raise UserError(
            f"{len(labels)} of the {self.job.noun} of {self.job.step} cost every worker that tried: {named} (the last "
            f"worker {self.given_up[labels[-1]]}); what was finished is kept and the next run tries these again; if "
            f"memory ran out, {self.setting}"
        )
