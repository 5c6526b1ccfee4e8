"""What the page says of edited models' traces, and how surely."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.override import Least, layers_table, override_table
from pipeline.analysis.profiles import Resampling
from pipeline.errors import UserError
from pipeline.report import extras
from pipeline.report.override import section
from pipeline.report.section import Section
from pipeline.tables import write_csv, write_json
from tests.analysis.test_override import rows

PLAN = Resampling(samples=200, permutations=99, confidence=0.95, seed=0)


def drawn(folder: Path, made: list[pd.DataFrame], layers: tuple[int, ...] = (4, 7)) -> Section:
    least = Least(change=0.1, effect=0.02)
    table = pd.concat(made)
    write_csv(override_table(table, layers, least, PLAN), folder / "override.csv")
    write_csv(layers_table(table, layers, least, PLAN), folder / "override_layers.csv")
    return section(folder, folder, 0.95)


def models(fact: str, peak: int, *, old: int = 1, zeroed: float = 0.1) -> list[pd.DataFrame]:
    """A fact unedited, and edited at 4 and 7; the trace is 0.4 at the edited block and 0.5 at `peak` (0.6 if both)."""
    found = [rows(fact, old, -1, "true", {old: 0.5}, (0.6, 0.6), {old: 0.06})]
    for at in (4, 7):
        found.append(rows(fact, old, at, "new", {peak: 0.5, at: 0.4}, (0.0, 0.8), {old: zeroed}))
        found.append(rows(fact, old, at, "true", {}, (0.6, 0.0)))
    return found


def test_what_it_says_is_what_the_tables_say(tmp_path: Path) -> None:
    found = drawn(tmp_path, [frame for fact in "abc" for frame in models(fact, 1)])
    asked, told = found.paragraphs
    assert "under noise that neither the edit nor the naming of the old site has seen" in asked
    assert told.startswith("**ROME, error injection.** In models edited away from the old site (3 facts)")
    for part in (
        "peaks at the edited block in 0% (30%) of edits and at the old site in 100% (30%); at the old sites of other "
        "facts 100%; it is at least half as high as its peak at both places in 100%",
        "So the edit shows in the trace, yet the peak stays where it was: it does not name the edited block; and that "
        "other facts' old sites do about as well says that what passes there is the subject",
        "Where the old site lies below the edit (3 facts), its MLPs give at the subject's last token what they gave",
        "With these outputs zeroed, 12% (100%) of what the edit did is kept, and in the unedited model 10% (100%) of "
        "the true object's probability (in brackets: windows elsewhere): the edit needs the old site's output as the",
        "its trace has no peak left",
        "All this describes 3 facts: below 40 no interval is given, and other facts may do otherwise.",
    ):
        assert part in told, told
    peaks, kept = found.tables
    assert ["layer 4", "new object", "3", "0.000", "0.300", "1.000", "0.300", "1.000"] in [
        list(row)[:8] for row in peaks.rows
    ]
    for table in found.tables:
        assert sum(columns for _, columns in table.groups) == len(table.head) == len(table.rows[0])
    assert list(kept.rows[0])[:3] == ["all layers: below the edit", "new object", "3"]


def test_a_trace_that_moves_with_the_edit_is_called_that(tmp_path: Path) -> None:
    made = [frame for fact in "ab" for at in (4, 7) for frame in [rows(fact, 1, at, "new", {at: 0.5})]]
    assert "So the trace moves with the edit." in drawn(tmp_path, made).paragraphs[1]


@pytest.mark.parametrize(("n_facts", "told"), [(39, "below 40 no interval is given"), (40, "; 100% to 100%)")])
def test_intervals_are_told_from_enough_facts_on(tmp_path: Path, n_facts: int, told: str) -> None:
    found = drawn(tmp_path, [frame for fact in range(n_facts) for frame in models(f"{fact:02}", 1)])
    assert told in found.paragraphs[1]
    assert ("no bands" in found.plots[0].caption) == (n_facts < 40)


def test_where_the_interval_allows_both_nothing_is_concluded(tmp_path: Path) -> None:
    peaks = [4, 1, 9] * 14
    made = [rows(f"{i:02}", 1, 4, "new", {peak: 0.5}) for i, peak in enumerate(peaks)]
    found = drawn(tmp_path, made, (4,)).paragraphs[1]
    assert "The intervals allow both: that the trace follows the edit, and that it does not." in found


def test_an_old_site_above_the_edit(tmp_path: Path) -> None:
    for value, other, told in (
        (0.2, 8, ": less than elsewhere above the edit, where windows are further from it as well."),
        (0.2, 5, "leave 25% (100%, other facts' old sites 100%) of what the edit did: less than there and elsewhere"),
        (0.8, 5, ", no less than elsewhere above it"),
    ):
        made = [rows(fact, old, 2, "new", {2: 0.5}, (0.0, 0.8), {old: value}) for fact, old in (("a", 8), ("b", other))]
        assert told in drawn(tmp_path, made, (2,)).paragraphs[1]


def test_the_figure_shows_means_edited_layers_and_old_sites(tmp_path: Path) -> None:
    (plot,) = drawn(tmp_path, [frame for fact in "ab" for frame in models(fact, 1)]).plots
    assert plot.name == "override"
    first, *_ = plot.figure.axes
    lines = {line.get_label(): line for line in first.lines}
    assert lines["layer 4"].get_ydata() == pytest.approx([0, 0.5, 0, 0, 0.4, 0, 0, 0, 0, 0])
    dotted = [line for line in first.lines if line.get_linestyle() == ":"]
    assert [int(np.asarray(line.get_xdata())[0]) for line in dotted] == [4, 7]
    assert [line.get_color() for line in dotted] == [lines[f"layer {at}"].get_color() for at in (4, 7)]
    (marks,) = [line for line in first.lines if line.get_marker() == "^" and line.get_linestyle() == "None"]
    assert np.asarray(marks.get_xdata()).tolist() == [1]
    assert plot.save(tmp_path, 50)[0].stat().st_size > 1000


def test_a_run_without_an_edit_says_so(tmp_path: Path) -> None:
    failed = rows("a", 1, 4, "new", {}).assign(p_restored=float("nan"))
    found = drawn(tmp_path, [failed])
    assert found.paragraphs[1] == "No edit was made, so nothing was measured."
    assert not found.plots
    too_little = drawn(tmp_path, [rows("a", 1, 4, "new", {}, (0.0, 0.01))])
    assert "No edit changed its object's probability enough" in too_little.paragraphs[1]
    assert too_little.plots == []


def test_it_is_an_extra_of_the_page(tmp_path: Path) -> None:
    own = tuple(extra for extra in extras.EXTRAS if extra.name == "override")
    fits = {"override": {"fits": True}}
    (more,) = extras.sections(tmp_path, tmp_path, fits, "m", 0.95, own)
    assert more.paragraphs[0].startswith("make override: where the traces of edited models peak")
    write_json({"model": "m"}, tmp_path / "measures" / "override.json")
    with pytest.raises(UserError, match=r"override\.csv: no such file; run make override"):
        extras.sections(tmp_path, tmp_path, fits, "m", 0.95, own)
    drawn(tmp_path, models("a", 1))
    (shown,) = extras.sections(tmp_path, tmp_path, fits, "m", 0.95, own)
    assert shown.anchor == "override"
