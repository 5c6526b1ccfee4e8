"""What the page says of the essence score, and draws."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.essence import ESSENCE_COLUMNS, R2_COLUMNS
from pipeline.edit import methods
from pipeline.errors import UserError
from pipeline.report import extras
from pipeline.report.essence import section
from pipeline.tables import write_csv, write_json
from tests.conftest import ROOT

NAN = float("nan")


def reports(folder: Path, n_facts: int = 10, essence: tuple[float, ...] = (0.8, 0.25, 1.0, 0.9, 0.95, 1.0)) -> Path:
    """The stage's tables of two problems at three layers."""
    table = pd.DataFrame(
        {
            "method": "rome", "problem": ["error_injection"] * 3 + ["fact_erasure"] * 3, "layer": [0, 1, 2] * 2,
            "essence": essence, "low": 0.1, "high": 1.0, "n_facts": n_facts,
            "perplexity_pre": 6.5, "perplexity_post": [7.5, 10.25, 6.5, 7.0, 6.75, 6.5],
        }
    )[list(ESSENCE_COLUMNS)]  # fmt: skip
    r2 = pd.DataFrame({name: [0.5, NAN] for name in R2_COLUMNS}).assign(
        method="rome", problem=["error_injection", "fact_erasure"], score="essence", trace_module="mlp",
        trace_window=5, trace_measure="fraction", n_facts=10, r2_layer=[0.625, NAN],
    )  # fmt: skip
    write_csv(table, folder / "essence.csv")
    write_csv(r2, folder / "essence_r2.csv")
    return folder


def test_what_it_says_is_what_the_tables_say(tmp_path: Path) -> None:
    found = section(reports(tmp_path), tmp_path, 0.95)
    assert "An edit that does nothing scores 1" in found.paragraphs[0]
    assert found.paragraphs[1] == (
        "Over all layers the mean score goes from 0.683 (error injection, ROME) to 0.950 (fact erasure, ROME). The "
        "least is left by edits at layer 1 for error injection, ROME: 0.250 over 10 facts, where the median perplexity "
        "is 6.50 before and 10.25 after the edit."
    )
    scores, r2 = found.tables
    assert list(scores.rows[0]) == ["error injection, ROME", "10", "0.683", "6.50", "7.50", "1", "0.250", "10.25"]
    assert sum(columns for _, columns in scores.groups) == len(scores.head)
    assert [list(row)[:3] for row in r2.rows] == [
        ["error injection, ROME", "10", "0.625"], ["fact erasure, ROME", "10", "–"],
    ]  # fmt: skip


def test_bands_are_drawn_from_enough_facts_on(tmp_path: Path) -> None:
    for n_facts, told in ((10, "no bands, as below 40 facts"), (40, "bands 95% intervals")):
        (plot,) = section(reports(tmp_path, n_facts), tmp_path, 0.95).plots
        assert told in plot.caption
        (ax,) = plot.figure.axes
        lines = {line.get_label(): line.get_ydata() for line in ax.lines}
        assert lines["error injection"] == pytest.approx([0.8, 0.25, 1.0])
        assert plot.save(tmp_path, 50)[0].stat().st_size > 1000


def test_a_run_without_an_edit_says_so(tmp_path: Path) -> None:
    found = section(reports(tmp_path, 0, (np.nan,) * 6), tmp_path, 0.95)
    assert found.paragraphs[1] == "No edit was made, so nothing was measured."
    assert list(found.tables[0].rows[1]) == ["fact erasure, ROME", "0", *["–"] * 6]
    assert found.plots == []


def test_it_is_an_extra_of_the_page(tmp_path: Path) -> None:
    extra = [extra for extra in extras.EXTRAS if extra.name == "essence"]
    fits = {"essence": {"fits": True}}
    (more,) = extras.sections(tmp_path, tmp_path, fits, "m", 0.95, tuple(extra))
    assert more.paragraphs[0].startswith("make essence: what edits leave")
    write_json({"model": "m"}, tmp_path / "measures" / "essence.json")
    for others in (({}, "m"), ({"essence": {"fits": False}}, "m"), (fits, "another")):
        (more,) = extras.sections(tmp_path, tmp_path, *others, 0.95, tuple(extra))
        assert more.paragraphs[0].endswith("What is there was made with other settings.")
    with pytest.raises(UserError, match=r"essence.csv: no such file"):
        extras.sections(tmp_path, tmp_path, fits, "m", 0.95, tuple(extra))
    (drawn,) = extras.sections(reports(tmp_path), tmp_path, fits, "m", 0.95, tuple(extra))
    assert drawn.anchor == "essence"


def test_tables_of_other_edits_or_regressions_are_another_run_s() -> None:
    params = methods.load(ROOT / "presets" / "smoke.yaml")
    made = params.identity("essence")
    for name, changes in (("edit", {"layers": (0,)}), ("regressions", {"folds": 3}), ("essence", {"texts": 9})):
        other = getattr(params, name).model_copy(update=changes)
        assert params.model_copy(update={name: other}).identity("essence") != made
        assert params.model_copy(update={name: other}).identity("maps") == params.identity("maps")
