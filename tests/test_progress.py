"""Progress: a bar in a terminal, sparse plain lines in a log."""

import io
import re

import pytest

from pipeline import progress
from pipeline.progress import Progress, clock, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands in for the time module: time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Clock:
    times = Clock()
    monkeypatch.setattr(progress, "time", times)
    return times


def run_log(passing: Clock, total: int, seconds_each: float) -> list[str]:
    log = io.StringIO()
    with Progress(total, "trace", "facts", log) as bar:
        for _ in range(total):
            passing.now += seconds_each
            bar.advance()
    return log.getvalue().splitlines()


def test_a_log_of_quick_units_has_a_line_a_tenth(passing: Clock) -> None:
    lines = run_log(passing, 1000, 0.01)
    assert len(lines) == 11
    assert lines[0] == "trace: 1000 facts to do"
    assert lines[1] == "trace: 100/1000 facts, 0:01 elapsed, 0:09 left"
    assert lines[-1] == "trace: 1000/1000 facts, 0:10 elapsed"


def test_a_log_of_slow_units_has_a_line_in_thirty_seconds(passing: Clock) -> None:
    lines = run_log(passing, 100, 16)
    done = [int(re.findall(r"(\d+)/100", line)[0]) for line in lines[1:]]
    assert done == list(range(2, 101, 2))
    assert lines[1] == "trace: 2/100 facts, 0:32 elapsed, 26:08 left"


@pytest.mark.parametrize(("total", "lines"), [(1, 1), (3, 3), (10, 10), (12, 10)])
def test_a_log_of_few_units_has_a_line_each_up_to_ten(passing: Clock, total: int, lines: int) -> None:
    assert len(run_log(passing, total, 1)) == 1 + lines


def test_nothing_to_do(passing: Clock) -> None:
    assert run_log(passing, 0, 1) == ["trace: 0 facts to do"]


def test_units_may_come_several_at_a_time(passing: Clock) -> None:
    log = io.StringIO()
    with Progress(100, "edit", "edits", log) as bar:
        for n in (4, 4, 4, 0, 60, 28):
            passing.now += 1
            bar.advance(n)
    done = re.findall(r"(\d+)/100", log.getvalue())
    assert done == ["12", "72", "100"]


def break_off_after(units: int, log: io.StringIO) -> None:
    with Progress(1000, "edit", "edits", log) as bar:
        bar.advance(units)
        raise KeyboardInterrupt


def test_the_last_count_is_told_when_work_ends_early_or_breaks(passing: Clock) -> None:
    log = io.StringIO()
    with Progress(1000, "edit", "edits", log) as bar:
        bar.advance(3)
    assert log.getvalue().splitlines()[-1].startswith("edit: 3/1000 edits, 0:00 elapsed")
    with pytest.raises(KeyboardInterrupt):
        break_off_after(100, log)
    assert log.getvalue().splitlines()[-1].startswith("edit: stopped at 100/1000 edits")


def test_a_terminal_gets_a_bar_with_the_time_left() -> None:
    terminal = Terminal()
    with Progress(4, "statistics", "tokens", terminal) as bar:
        for _ in range(4):
            bar.advance()
    shown = terminal.getvalue()
    assert "statistics: 100%" in shown
    assert "4/4" in shown
    assert "<" in shown  # tqdm's elapsed<left
    assert "to do" not in shown


def test_say_prints_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("12 facts are known")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "12 facts are known\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (-3, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (222, "3:42"), (3822, "1:03:42")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
