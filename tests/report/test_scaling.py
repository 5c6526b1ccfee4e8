"""The section on many edits at once says what its tables hold, and draws every one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.profiles import Resampling
from pipeline.analysis.scaling import mixtures_table, places_table, relations_table, scaling_table
from pipeline.errors import UserError
from pipeline.report.scaling import draw
from pipeline.tables import write_csv
from tests.analysis.test_counterfact import edit
from tests.analysis.test_scaling import rows

PLAN = Resampling(samples=200, permutations=40, confidence=0.95, seed=0)


def made(n: int, method: str, good: float, study: str = "scaling", relation: str = "", count: int = 48) -> pd.DataFrame:
    """Facts of two relations in turn, of whose edits so large a share holds."""
    parts = []
    for i in range(count):
        new, old = (0.8, 0.1) if i < good * count else (0.1, 0.8)
        frame = edit(f"f{relation}{i}", f"r{new}-{old} p{new}-{old} n.1-.4", layer=6)
        of = relation or ("P1", "P2")[i % 2]
        entropy = 5.0 if i < 10 else np.nan
        parts.append(rows(frame, n=n, method=method, study=study, relation=of, entropy=entropy, batch=i // max(n, 1)))
    return pd.concat(parts)


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    whole = pd.concat([
        made(0, "unedited", 0.25),
        made(1, "memit", 1.0), made(48, "memit", 0.875), made(1, "rome", 1.0), made(48, "rome", 0.5),
        made(4, "memit", 1.0, "P1", "P1", 4), made(4, "memit", 0.5, "P2", "P2", 4),
        pd.concat([made(4, "memit", 1.0, "P1+P2", "P1", 2), made(4, "memit", 0.5, "P1+P2", "P2", 2)]),
    ], ignore_index=True)  # fmt: skip
    tables = {
        "scaling": scaling_table(whole, ["memit", "rome"], [1, 48, 1000], PLAN),
        "relations": relations_table(whole, ["memit", "rome"], PLAN),
        "mixtures": mixtures_table(whole, PLAN),
        "places": places_table(
            pd.concat([edit("a", "r.8-.1 p.8-.1 n.1-.4", layer=layer).assign(window=window, acts=layer < 4)
                       for window in (1, 3) for layer in (0, 2, 4)]), PLAN),
    }  # fmt: skip
    for name, table in tables.items():
        write_csv(table, tmp_path / f"{name}.csv")
    return tmp_path


def test_the_words_are_the_tables(reports: Path, tmp_path: Path) -> None:
    section = draw(reports, tmp_path, 0.95)
    text = " ".join(section.paragraphs)
    assert "An edit that does nothing would score ES 0.25, PS 0.25, NS 1.00 and S 0.33" in text
    assert "MEMIT goes from S 1.00 at 1 edit to 0.91 at 48 edits (NS from 1.00 to 1.00)." in text
    assert "ROME goes from S 1.00 at 1 edit to 0.60 at 48 edits" in text
    assert "1,000 edits at once are left out" in text
    assert "with a window of 1 block around layer 0 (1 fact)" in text
    first = section.tables[0]
    assert all(len(row) == len(table.head) for table in section.tables for row in table.rows)
    by_name = {row[0]: row for row in first.rows}
    assert list(by_name) == ["unedited", "MEMIT, 1", "MEMIT, 48", "ROME, 1", "ROME, 48"]
    assert by_name["MEMIT, 48"][1].startswith("0.91 (0.")  # of 48 facts: an interval
    assert by_name["MEMIT, 48"][5] == "5.00"  # of 10 texts: none
    assert "MEMIT at layer 6 and ROME at layer 6" in first.note
    assert [table.source for table in section.tables] == ["scaling.csv", "relations.csv", "mixtures.csv"]
    mixture = section.tables[2]
    assert sum(count for _, count in mixture.groups) == len(mixture.head)


def test_the_figures_have_a_line_a_method_and_a_cell_a_place(reports: Path, tmp_path: Path) -> None:
    scaling, places = draw(reports, tmp_path, 0.95).plots
    assert len(scaling.figure.axes) == 6
    shown = [ax for ax in scaling.figure.axes if ax.get_visible()]
    assert [len(ax.get_lines()) for ax in shown] == [3] * 5
    assert all(ax.get_xscale() == "log" for ax in shown)
    assert "95% intervals" in scaling.caption
    grid = places.figure.axes[0].collections[0].get_array()
    assert grid is not None
    assert np.asarray(np.ma.getmaskarray(grid)).reshape(2, 3).tolist() == [[False, False, True]] * 2  # cannot act
    for plot in (scaling, places):
        svg, png = plot.save(tmp_path / "figures", 60)
        assert svg.stat().st_size > 1000
        assert png.stat().st_size > 1000


def test_a_run_of_one_number_without_memit_has_its_table_alone(reports: Path, tmp_path: Path) -> None:
    table = pd.read_csv(reports / "scaling.csv").query("method == 'unedited'")
    write_csv(table, reports / "scaling.csv")
    for name in ("relations", "mixtures", "places"):
        write_csv(pd.read_csv(reports / f"{name}.csv").iloc[:0], reports / f"{name}.csv")
    section = draw(reports, tmp_path, 0.95)
    assert (len(section.tables), len(section.plots)) == (1, 0)


def test_a_missing_table_is_told(reports: Path, tmp_path: Path) -> None:
    (reports / "places.csv").unlink()
    with pytest.raises(UserError, match=r"places\.csv: no such file"):
        draw(reports, tmp_path, 0.95)
