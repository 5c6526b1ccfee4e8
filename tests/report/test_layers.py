"""What the page says of where to edit: its sentences, table and figure, and what it withholds."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer

from pipeline.analysis.layers import CHOICES, LAYER_COLUMNS
from pipeline.errors import UserError
from pipeline.report import layers, sources
from pipeline.report.section import number
from pipeline.tables import write_csv
from tests.report.made import Made, Page, where


def made_up(n_facts: int = 40, regret: tuple[float, ...] = (0.123, -0.004), method: str = "rome") -> pd.DataFrame:
    """layers.csv of one method, two scores and a problem for each `regret` of the fixed layer."""
    rows = [
        {
            "method": method, "problem": problem, "score": score, "localizer": "trace_mlp_w5_fraction",
            "choice": choice, "mean": 0.5 + (lost if choice == "fixed" else 0), "low": 0.4, "high": 0.9,
            "regret": lost if choice == "fixed" else 0.02, "regret_low": lost - 0.04, "regret_high": lost + 0.05,
            "hit_1": 0.25, "hit_2": 0.5, "hit_5": 1.0, "n_facts": n_facts, "layer": 7,
            "permutation_pvalue": 0.31 if choice == "dealt" else np.nan,
        }
        for problem, lost in zip(("error_injection", "fact_erasure"), regret, strict=False)
        for score in ("overall", "rewrite")
        for choice in CHOICES
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=list(LAYER_COLUMNS))
    table.loc[table["choice"] == "dealt", ["low", "high", "regret_low", "regret_high"]] = np.nan
    return table


def test_the_first_sentence_is_made_of_the_numbers() -> None:
    told = layers.section(made_up(), 0.95)
    assert told["first"] == (
        "Editing at the traced layer (ROME) loses 12.3 points of rewrite score (95% interval 8.3 to 17.3) for error "
        "injection and gains 0.4 (-4.6 to 4.4) for fact erasure against one fixed layer, chosen on other facts."
    )
    assert (told["intervals"], told["tests"], told["localizers"]) == (True, 2, 1)
    two = layers.section(pd.concat([made_up(), made_up(method="ft_l")]), 0.95)
    assert two["first"] == told["first"]
    named = layers.section(pd.concat([made_up().assign(localizer="gradient"), made_up()]), 0.95)
    assert named["first"].startswith("Editing at the traced layer (ROME, gradient) loses 12.3 ")


def test_what_is_lost_is_a_table_of_methods_and_measures() -> None:
    by_two = pd.concat([made_up(), made_up(method="ft_l", regret=(0.05, 0.01))])
    effect, other = by_two.assign(localizer="trace_mlp_w5_effect"), made_up(regret=(0.2, 0.3))
    told = layers.section(pd.concat([by_two, effect, other.assign(localizer="gradient")]), 0.95)
    fixed, random, *means = layers.tables(told, 500)
    assert fixed.title == "What the traced layer loses against one fixed layer, chosen on other facts"
    assert list(fixed.head) == ["method", "trace", "error injection", "fact erasure"]
    assert fixed.rows == [
        ["ROME", "trace_mlp_w5_fraction", "12.3 (8.3 to 17.3)", "-0.4 (-4.4 to 4.6)"],
        ["ROME", "gradient", "20.0 (16.0 to 25.0)", "30.0 (26.0 to 35.0)"],
        ["FT+L", "trace_mlp_w5_fraction", "5.0 (1.0 to 10.0)", "1.0 (-3.0 to 6.0)"],
    ]
    assert random.title == "What the traced layer loses against a random layer"
    assert {cells[2][:4] for cells in random.rows[:2]} == {"2.0 "}
    assert fixed.note.endswith("better one. By trace_mlp_w5_effect they are the same as by trace_mlp_w5_fraction.")
    assert [table.title.partition(",")[2] for table in means] == [
        " by trace_mlp_w5_fraction and trace_mlp_w5_effect", " by gradient",
    ]  # fmt: skip
    few = layers.tables(layers.section(made_up(n_facts=39), 0.95), 500)[0]
    assert (few.rows[0][2], "interval" in few.note) == ("12.3", False)


def test_intervals_of_few_facts_and_tests_of_fewer_are_withheld() -> None:
    told = layers.section(made_up(n_facts=39), 0.95)
    assert told["first"] == (
        "Editing at the traced layer (ROME) loses 12.3 points of rewrite score for error injection and gains 0.4 for "
        "fact erasure against one fixed layer, chosen on other facts; below 40 facts no interval is given, and it may "
        "be chance."
    )
    assert {row["regret_low"] for row in told["rows"]} == {None}
    assert [row["p"] for row in told["rows"]] == [0.31, 0.31]
    assert [row["p"] for row in layers.section(made_up(n_facts=9), 0.95)["rows"]] == [None, None]
    assert "-0.0" not in layers.section(made_up(regret=(-1e-5,)), 0.95)["first"]


def test_the_page_begins_with_it_and_has_the_table(made: Made) -> None:
    page = Page(made.page)
    text = re.sub(r"\s+", " ", page.text)
    table = where(made.scores)
    first = layers.section(table, 0.95)["first"]
    assert text.count(first) == 1
    assert made.page.split('class="answer" id="answer">')[1].startswith("Editing at the traced layer (ROME) ")
    at = table.query("problem == 'fact_erasure' and score == 'rewrite'").set_index("choice")
    hits = at.loc["traced", "hit_1"], at.loc["random", "hit_1"]
    row = (
        f"fact erasure ROME 12 {at.loc['traced', 'mean']:.3f} {at.loc['fixed', 'mean']:.3f} "
        f"({at.loc['fixed', 'layer']}) {at.loc['random', 'mean']:.3f} {at.loc['dealt', 'mean']:.3f} "
        f"{at.loc['best', 'mean']:.3f} {at.loc['fixed', 'regret']:.3f} {number(-at.loc['dealt', 'regret'])} "
        f"({at.loc['dealt', 'permutation_pvalue']:.4f}) {hits[0]:.0%} ({hits[1]:.0%})"
    )
    assert row in text
    assert "Below 40 facts intervals are not given" in text


def test_a_run_that_cannot_say_says_so() -> None:
    nothing = made_up()[:0]
    told = layers.section(nothing, 0.95)
    assert (told["first"], told["rows"], layers.tables(told, 500)) == ("", [], [])
    assert layers.layers_plot(nothing, 0.95) is None


@pytest.mark.parametrize(("n_facts", "bars", "told"), [(40, 3 * 2, "bars 95% intervals"), (39, 0, "no bars below 40")])
def test_the_figure_has_a_panel_a_method_and_bars_where_they_hold(
    n_facts: int, bars: int, told: str, tmp_path: Path
) -> None:
    table = pd.concat([made_up(n_facts), made_up(n_facts, method="memit")])
    plot = layers.layers_plot(table, 0.95)
    assert plot is not None
    assert [ax.get_title() for ax in plot.figure.axes] == ["ROME", "MEMIT"]
    drawn = [made for made in plot.figure.axes[0].containers if isinstance(made, ErrorbarContainer)]
    assert len(drawn) == len(CHOICES)
    segments = [path for made in drawn for line in made.lines[2] for path in line.get_segments()]
    assert sum(len(path) == 2 and bool(np.isfinite(path).all()) for path in segments) == bars
    assert told in plot.caption
    assert plot.save(tmp_path, 50)[0].stat().st_size > 1000


def test_the_table_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "layers.csv"
    write_csv(made_up(), path)
    pd.testing.assert_frame_equal(sources.read_layers(path), made_up(), check_dtype=False)
    assert layers.section(sources.read_layers(path), 0.95)["first"] == layers.section(made_up(), 0.95)["first"]
    write_csv(made_up()[:0], path)
    assert layers.section(sources.read_layers(path), 0.95)["rows"] == []
    path.write_text("method,problem\n")
    with pytest.raises(UserError, match=r"layers\.csv: has no column score; delete it and run dvc repro again"):
        sources.read_layers(path)
