"""What the page says of the linear model is what the two tables say."""

from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.fractional import FRACTIONAL_COLUMNS
from pipeline.report import fractional
from tests.report.made import Made
from tests.report.test_page import regressions_with


def checked(**columns: Any) -> pd.DataFrame:
    """fractional.csv of two problems, with some columns of one's own."""
    keys = regressions_with()[list(FRACTIONAL_COLUMNS[:6])]
    plain = dict.fromkeys(FRACTIONAL_COLUMNS[6:], 0.5) | {
        "n_facts": 100, "note": "", "at_floor": [0.0, 0.01], "at_ceiling": [0.26, 0.63], "r2_diff": [0.021, 0.006],
        "chance": 0.002, "ame": -0.05, "ame_low": -0.2, "ame_high": 0.1, "linear_slope": -0.04,
    }  # fmt: skip
    return keys.assign(**plain | columns)[list(FRACTIONAL_COLUMNS)]


def test_the_sentence_is_made_of_both_tables() -> None:
    (text,) = fractional.sentence(checked(), regressions_with())
    assert "26 to 64% of the rewrite scores of a problem are within 0.01 of 0 or 1" in text
    assert "finds the trace to add 0.6 to 2.1 points of R² where straight lines find 1.0 to 2.0" in text
    assert "for no problem are the two more than 0.4 points apart." in text


def test_an_empty_cell_is_said_and_is_no_number() -> None:
    slope = {name: [-0.05, np.nan] for name in ("ame", "ame_low", "ame_high")}
    empty = checked(r2_diff=[0.021, np.nan], note=["", "separated in 2 layers"], **slope)
    (text,) = fractional.sentence(empty, regressions_with())
    assert "more than 0.1 points apart (it could not be fitted to 1 of 2 problems)." in text
    (table,) = fractional.tables(empty, regressions_with(), "95%")
    assert table.rows[1][-1] == "separated in 2 layers"
    assert table.rows[1][5] == table.rows[1][8] == "–"
    assert table.rows[0][-1] == "–"
    nothing = checked(r2_diff=np.nan, note="one layer")
    (text,) = fractional.sentence(nothing, regressions_with())
    assert text.endswith("A model that stays between 0 and 1 could not be fitted to any problem.")


def test_intervals_are_withheld_with_few_facts() -> None:
    (table,) = fractional.tables(checked(), regressions_with(), "95%")
    assert table.rows[0] == [
        "error injection", "26%", "0%", "0.500", "0.020", "0.021", "0.002", "-0.040", "-0.050 (-0.200 to 0.100)", "100",
        "–",
    ]  # fmt: skip
    assert sum(columns for _, columns in table.groups) == len(table.head) == len(table.rows[0])
    (table,) = fractional.tables(checked(n_facts=39), regressions_with(), "95%")
    assert table.rows[0][8] == "-0.050"
    assert table.note.endswith("Below 40 facts no interval is given.")


def test_tables_without_a_regression_in_common_say_nothing() -> None:
    assert fractional.tables(checked(method="memit"), regressions_with(), "95%") == []
    assert fractional.sentence(checked(method="memit"), regressions_with()) == []


def test_the_page_has_it_where_it_says_how_sure_it_is(made: Made) -> None:
    (table,) = made.document.sure.tables
    assert table.folded
    assert table.source == "fractional.csv"
    assert len(table.rows) == 5
    assert made.document.sure.points[-1].startswith("Scores are bounded: ")
