"""Status: seconds a unit and time left, and the table it prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.compute.status import Line, Survey, rate, render, size, survey
from pipeline.compute.store import Entry
from pipeline.compute.work import Unit


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ([], None),
        ([5.0], None),
        ([0, 10, 20, 30], 10),
        ([30, 0, 20, 10], 10),  # whatever their order
        ([0, 0.1, 20, 20.1, 40, 40.1], 40.1 / 5),  # two workers that finish in pairs
        ([0, 10, 20, 90_000, 90_030, 90_060], 30),  # the latest burst tells
        ([0, 10, 20, 30, 90_000], 10),  # and where it has but one unit, the one before
        ([0, 10, 20, 70, 80], 20),  # a short pause is none
        ([0, 3600, 7200, 10_800], 3600),  # slow is no pause
    ],
)
def test_rate(times: list[float], seconds: float | None) -> None:
    assert rate(times) == pytest.approx(seconds)


def entries(step: str, keys: range, spacing: float) -> Iterator[Entry]:
    for i in keys:
        yield Entry(step=step, key=str(i), label=f"fact {i}", size=100, mtime=1000 + spacing * i)


def test_time_left_is_the_rate_times_what_is_left() -> None:
    unit: Callable[[int], Unit] = lambda i: Unit(str(i), f"fact {i}", None)  # noqa: E731
    wanted = [unit(i) for i in range(10)]
    stored = [
        *entries("trace", range(4), 20),
        *entries("edit-rome-a", range(10), 30),
        *entries("edit-rome-b", range(5, 9), 5),
    ]
    steps = {"trace": wanted, "edit-rome-a": wanted, "edit-rome-b": wanted[:5], "edit-rome-c": wanted, "known": wanted}
    lines = {line.step: line for line in survey(stored, steps).lines}
    assert lines["trace"].seconds_left == 120
    assert lines["edit-rome-a"].seconds_left == 0
    assert (lines["edit-rome-b"].done, lines["edit-rome-b"].seconds_left) == (0, 25)  # from units of other settings
    assert (lines["edit-rome-c"].guessed, lines["edit-rome-c"].seconds) == (True, (30 + 5) / 2)
    assert lines["known"].seconds_left is None
    text = render(survey(stored, steps))
    assert "2:00" in text
    assert "~17.5" in text
    assert "5:20 + ?" in text  # 120 + 25 + 175 seconds, and known


def test_a_table_of_one_step() -> None:
    found = Survey([Line(step="known", units=3, done=1, seconds=2.5, size=2500)], set(), [])
    assert render(found).splitlines() == [
        "step   done  left  s/unit  time left    size",
        "known   1/3     2     2.5       0:05  2.5 kB",
        "total   1/3     2               0:05  2.5 kB",
        "needed by no current setting: 0 files, 0 B",
    ]


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (5 * 10**15, "5000.0 TB")]
)
def test_size(count: int, told: str) -> None:
    assert size(count) == told
