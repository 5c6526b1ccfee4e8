"""CounterFact's table against values worked out by hand: which layer is best, and what stands in each row."""

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.counterfact import counterfact_table
from pipeline.analysis.table import TABLE_COLUMNS, best_layers, methods_table
from pipeline.errors import UserError
from tests.analysis.test_counterfact import PLAN, edit


def tried(**at: str) -> pd.DataFrame:
    """Edits of two facts alike at layers l0, l1, ... by ROME."""
    return pd.concat(
        [edit(name, prompts, layer=int(layer[1:])) for layer, prompts in at.items() for name in ("one", "two")]
    )


def test_the_best_layer_is_that_of_the_highest_s() -> None:
    edits = tried(l0="r.9-.0 p.9-.1 n.8-.1", l3="r.6-.2 p.5-.1 n.1-.3", l6="r.9-.1 p.1-.4 n.0-.9")
    assert best_layers(edits) == {"rome": 3}  # S is 0 at the others: NS is 0 at layer 0, PS at layer 6
    both = pd.concat([edits.assign(method="memit"), edits[edits["layer"] != 3]])
    assert next(iter(best_layers(both).items())) == ("memit", 3)


def test_ties_go_to_the_larger_margin_and_then_to_the_lower_layer() -> None:
    edits = tried(l0="r.6-.2 p.5-.1 n.1-.3", l3="r.9-.2 p.5-.1 n.1-.3", l6="r.9-.2 p.5-.1 n.1-.3")
    assert best_layers(edits) == {"rome": 3}


def test_a_kind_of_prompt_that_no_fact_has_does_not_decide() -> None:
    assert best_layers(tried(l0="r.1-.2 n.1-.3", l4="r.3-.2 n.1-.3")) == {"rome": 4}


def test_an_edit_that_failed_is_no_choice_and_a_method_that_can_edit_nothing_is_refused() -> None:
    edits = tried(l0="r.6-.2 p.5-.1 n.1-.3", l3="r.9-.2 p.5-.1 n.1-.3")
    failed = edits.assign(status=edits["status"].where(edits["layer"] != 3, "failed: not finite"))
    assert best_layers(failed) == {"rome": 0}
    with pytest.raises(UserError, match=r"rome, of which every edit failed .* the first with: dropped: none"):
        best_layers(edits.assign(status="dropped: none"))


def made() -> tuple[pd.DataFrame, pd.DataFrame]:
    """data/table.parquet and table_texts.parquet of two facts, unedited and edited at layer 2 and at all layers."""
    edits = pd.concat(
        [
            edit(name, prompts, method=method, layer=layer)
            for name in ("one", "two")
            for method, layer, prompts in (
                ("unedited", -1, "r.1-.6 p.1-.5 n.1-.3"),
                ("rome", 2, "r.6-.2 p.5-.1 n.1-.3"),
                ("kn", -1, "r.3-.2 p.1-.2 n.1-.3"),
            )
        ]
    )
    rows = [
        {"fact_id": fact, "method": method, "layer": layer, "entropy": entropy + i, "reference": reference}
        for fact, reference in (("one", 0.5), ("two", np.nan))
        for method, layer, entropy in (("unedited", -1, 6.0), ("rome", 2, 5.0), ("kn", -1, 4.0))
        for i in (0, 1)
    ]
    return edits, pd.DataFrame(rows)


ROWS = [
    ("unedited", -1, "unedited"), ("rome", 2, "best on other facts"), ("rome", 2, "published depth"),
    ("kn", -1, "published depth"), ("ft", 3, "published depth"),
]  # fmt: skip


def test_rows_are_as_asked_for_with_the_measures_of_their_edits() -> None:
    edits, texts = made()
    table = methods_table(edits, texts, ROWS, PLAN)
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert list(table.columns[:4]) == ["method", "layer", "chosen", "n_facts"]
    assert list(zip(table["method"], table["layer"].fillna(-1), table["chosen"], strict=True)) == ROWS
    assert list(table["layer"].isna()) == [True, False, False, True, False]
    assert list(table["n_facts"]) == [2, 2, 2, 2, 0]
    assert list(table["ES"])[:4] == [0, 1, 1, 1]
    assert list(table["S"])[:4] == [0, 1, 1, 0]
    assert table.iloc[4, 4:].isna().all()
    assert table.iloc[1].drop("chosen").equals(table.iloc[2].drop("chosen"))


def test_ge_is_the_mean_over_a_facts_texts_and_rs_leaves_out_facts_without_references() -> None:
    edits, texts = made()
    table = methods_table(edits, texts, ROWS, PLAN)
    assert list(table["GE"])[:4] == [6.5, 5.5, 5.5, 4.5]
    assert list(table["RS"])[:4] == [0.5] * 4
    assert np.isnan(table["RS_low"]).all()  # of a single fact
    texts.loc[(texts["fact_id"] == "two") & (texts["method"] == "rome"), "entropy"] += 1
    assert methods_table(edits, texts, ROWS, PLAN)["GE"][1] == 6.0
    few = texts[texts["fact_id"] == "one"]
    assert list(methods_table(edits, few, ROWS, PLAN)["GE"])[:2] == [6.5, 5.5]


def test_texts_change_nothing_of_the_other_measures() -> None:
    edits, texts = made()
    table = methods_table(edits, texts, ROWS, PLAN)
    plain = counterfact_table(edits, PLAN).set_index(["method", "layer"])
    for name in ("S", "S_low", "PM_high", "NS"):
        assert table[name][1] == plain[name]["rome", 2]
