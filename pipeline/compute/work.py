"""What a unit of work and a job are: the interface between those who know how to compute and those who hand out work.

A job lists its units and makes a worker, which computes one unit after the other; only when a unit is missing from the
store is a worker made, and so a model loaded. A unit's result depends on the unit alone, never on which others are
computed beside it or by whom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class Unit:
    """One unit of work. key: hash of all that its result depends on. label: for people. item: what the worker needs."""

    key: str
    label: str
    item: Any


class Job(Protocol):
    """A list of units and the worker that computes one; both can be sent to another process.

    It is a dataclass with `params` among its fields: a cluster's workers are given their own number of threads there.
    """

    @property
    def params(self) -> Params: ...

    @property
    def step(self) -> str: ...

    @property
    def noun(self) -> str: ...

    def units(self) -> Sequence[Unit]: ...

    def worker(self) -> Callable[[Unit], pa.Table]: ...
