"""The page's section on CounterFact's table: our numbers beside the published ones, and texts before and after."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.table import TABLE_COLUMNS
from pipeline.errors import UserError
from pipeline.report import counterfact, extras
from pipeline.report.section import Section
from pipeline.tables import FACTS, write
from tests.conftest import ROOT
from tests.report.made import NASTY

PUBLISHED = ROOT / "data" / "paper" / "counterfact_published.csv"
ASKED = {"count": 50, "choose_on": 7, "generate_tokens": 20, "generate_prompts": 2, "snippets": None}
ROWS = [
    ("unedited", np.nan, "unedited", 0.2),
    ("rome", 9, "best on other facts", 0.85), ("rome", 10, "published depth", 0.8),
    ("kn", 3, "best on other facts", 0.5), ("kn", np.nan, "published depth", 0.4),
]  # fmt: skip


def project(folder: Path, n_facts: int = 50, **asked: Any) -> tuple[Path, Path]:
    """reports/ and data/ as the stage leaves them, with made-up numbers."""
    reports, data = folder / "reports", folder / "data"
    for path in (reports, data / "paper", data / "measures"):
        path.mkdir(parents=True)
    values = dict.fromkeys(TABLE_COLUMNS[4:], 0.0)
    rows = []
    for method, layer, chosen, s in ROWS:
        row = {"method": method, "layer": layer, "chosen": chosen, "n_facts": n_facts, **values}
        row |= {"S": s, "S_low": s - 0.125, "S_high": s + 0.125, "ES": s, "PS": s, "NS": s, "GE": 6.25}
        row |= dict.fromkeys(("RS", "RS_low", "RS_high"), np.nan)
        rows.append(row)
    pd.DataFrame(rows)[list(TABLE_COLUMNS)].to_csv(reports / "counterfact.csv", index=False)
    shutil.copy(PUBLISHED, data / "paper")
    said = [
        {"fact_id": f"f{f}", "method": method, "layer": -1 if np.isnan(layer) else int(layer), "prompt_index": i}
        | {"prompt": f"{NASTY} {f} prompt {i}", "before": f"before {f} {i}\nline", "entropy": 1.0, "reference": np.nan}
        | {"after": f"{method} {layer} {f} {i}\n{NASTY}"}
        for f in (2, 0, 1)
        for method, layer, _, _ in ROWS
        for i in range(3)
        if not (method == "kn" and f == 2)  # whose edits failed
    ]
    write(pd.DataFrame(said), data / "table_texts.parquet")
    facts = [
        {"fact_id": f"f{f}", "relation": "P1", "subject": f"{NASTY} {f}", "prompt": "{} is in", "target_true": "Rome"}
        | {
            "target_false": "Oslo",
            "reverse": "",
            "paraphrases": [""],
            "neighborhood": [""],
            "source": "embedded",
            "p_true": 0.9,
        }
        | {"greedy_correct": True, "kept": True, "drop_reason": ""}
        for f in range(3)
    ]
    write(pd.DataFrame(facts)[list(FACTS)], data / "facts.parquet")
    (data / "measures" / "table.json").write_text(json.dumps({"model": "m", "made_of": {"table": ASKED | asked}}))
    return reports, data


def section(folder: Path, n_facts: int = 50, **asked: Any) -> Section:
    return counterfact.section(*project(folder, n_facts, **asked), 0.95)


def test_the_published_table_agrees_with_itself() -> None:
    table = pd.read_csv(PUBLISHED)
    assert list(table.columns) == list(counterfact.PUBLISHED_COLUMNS)
    assert table.groupby("model").size().to_dict() == {"GPT-2 XL": 9, "GPT-J": 5}
    s = 3 / (1 / table[["ES", "PS", "NS"]]).sum(axis=1)
    assert (table["S"] - s).abs().max() < 0.15  # of what is printed to one decimal


def test_each_method_stands_beside_what_is_published_of_it(tmp_path: Path) -> None:
    table = section(tmp_path).tables[0]
    assert [tuple(row[:3]) for row in table.rows] == [
        ("unedited", "–", "50"), ("unedited", "GPT-2 XL, published", ""), ("unedited", "GPT-J, published", ""),
        ("ROME", "layer 9, best on other facts", "50"), ("ROME", "layer 10, published depth", "50"),
        ("ROME", "GPT-2 XL, published", ""), ("ROME", "GPT-J, published", ""),
        ("KN", "layer 3, best on other facts", "50"), ("KN", "all layers, published depth", "50"),
        ("KN", "GPT-2 XL, published", ""),
    ]  # fmt: skip
    assert {len(row) for row in table.rows} == {len(table.head)} == {12}
    ours = dict(zip(table.head, table.rows[3], strict=True))
    assert ours["S"] == "85.0 (72.5 to 97.5)"
    assert ours["GE"].startswith("625.0")
    assert ours["RS"] == "–"
    assert dict(zip(table.head, table.rows[5], strict=True))["NS"] == "75.4"


def test_the_text_says_what_was_chosen_on_what_and_what_an_edit_that_does_nothing_gets(tmp_path: Path) -> None:
    text = " ".join(section(tmp_path).paragraphs)
    assert text.startswith(
        "Of methods at the layer that is best on other facts, ROME (layer 9) has the highest S: 85.0"
    )
    assert "85.0 (72.5 to 97.5) (95% interval from resampled facts; the unedited model has 20.0)" in text
    assert "Each of 50 facts that the model knows" in text
    assert "highest on 7 facts that are not among these" in text
    assert "what an edit that does nothing would get" in text
    assert "Asked for" not in text
    assert "2 texts a fact of 20 tokens" in text


def test_methods_that_tie_are_all_named(tmp_path: Path) -> None:
    reports, data = project(tmp_path)
    path = reports / "counterfact.csv"
    table = pd.read_csv(path)
    table.loc[table["method"] == "kn", "S"] = 0.85
    table.to_csv(path, index=False)
    first = counterfact.section(reports, data, 0.95).paragraphs[0]
    assert "ROME (layer 9) and KN (layer 3) have the highest S: 85.0 (the unedited model has 20.0)" in first


def test_below_so_many_facts_no_interval_is_printed(tmp_path: Path) -> None:
    found = section(tmp_path, n_facts=39)
    text = " ".join(found.paragraphs)
    assert "85.0 (below 40 facts no interval is given" in text
    assert "Asked for were 50; the model knows no more." in text
    assert found.tables[0].rows[3][3] == "85.0"
    assert "No intervals below 40 facts" in found.tables[0].note
    assert "no bars, as below 40 facts" in found.plots[0].caption


def test_texts_are_of_the_first_facts_by_every_method_at_its_best_layer(tmp_path: Path) -> None:
    tables = section(tmp_path).tables[1:]
    assert [table.title for table in tables] == [
        f"What an edit sounds like: “{NASTY} {f} is in Oslo”, not Rome" for f in (2, 0)
    ]
    table = tables[1]
    assert table.wraps
    assert list(table.head) == ["edit", f"{NASTY} 0 prompt 0 …", f"{NASTY} 0 prompt 1 …"]
    assert [list(row) for row in table.rows] == [
        ["before any edit", *(f"unedited nan 0 {i} ⏎ {NASTY}" for i in (0, 1))],
        ["ROME, layer 9", *(f"rome 9 0 {i} ⏎ {NASTY}" for i in (0, 1))],
        ["KN, layer 3", *(f"kn 3 0 {i} ⏎ {NASTY}" for i in (0, 1))],
    ]
    assert tables[0].rows[2] == ["KN, layer 3", "(the edit failed)", "(the edit failed)"]


def test_the_page_shows_it_where_it_is_of_this_run(tmp_path: Path) -> None:
    reports, data = project(tmp_path)
    only = tuple(extra for extra in extras.EXTRAS if extra.name == "table")
    assert len(only) == 1
    shown = extras.sections(reports, data, {"table": {"fits": True}}, "m", 0.95, only)
    assert [one.anchor for one in shown] == ["counterfact"]
    other = extras.sections(reports, data, {"table": {"fits": False}}, "m", 0.95, only)
    assert [one.anchor for one in other] == ["more"]
    assert "made with other settings" in other[0].paragraphs[0]


def test_the_figure_has_a_point_for_each_score_and_method_and_can_be_drawn(tmp_path: Path) -> None:
    (plot,) = section(tmp_path).plots
    (ax,) = plot.figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["unedited", "ROME, layer 9", "KN, layer 3"]
    assert [list(container[0].get_xdata()) for container in ax.containers] == [[0.2, 0.85, 0.5]] * 3
    assert all(path.stat().st_size > 1000 for path in plot.save(tmp_path / "figures", 60))
    assert "each at the layer that is best on other facts" in plot.caption


def test_a_file_that_lacks_a_column_is_refused_by_name(tmp_path: Path) -> None:
    reports, data = project(tmp_path)
    (reports / "counterfact.csv").write_text("method\nrome\n")
    with pytest.raises(UserError, match=r"counterfact\.csv: has no column layer"):
        counterfact.section(reports, data, 0.95)
