"""The README's results are those of the committed tables, and follow when these change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.report import readme
from tests.conftest import ROOT


def test_the_readme_says_what_the_committed_tables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert readme.main(["--check"]) == 0


def test_another_table_gives_other_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("default-run", "reference", "second-model", "counterfact"):
        shutil.copytree(ROOT / "reports" / run, Path("reports", run))
    shutil.copytree(ROOT / "data" / "paper", "data/paper")
    for file in readme.FILES:
        file.parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, file)
    table = pd.read_csv("reports/default-run/regressions.csv")
    table["r2_layer"] = 0.123456
    table.to_csv("reports/default-run/regressions.csv", index=False)
    choices = pd.read_csv("reports/second-model/layers.csv")
    choices.assign(regret=0.0123).to_csv("reports/second-model/layers.csv", index=False)
    choices = pd.read_csv("reports/reference/layers.csv")
    choices.assign(regret=0.432).to_csv("reports/reference/layers.csv", index=False)
    by_reference = pd.read_csv("reports/reference/regressions.csv")[["method", "problem"]].drop_duplicates()
    measures = pd.read_csv("reports/reference/counterfact.csv")
    measures.assign(S=0.654321).to_csv("reports/reference/counterfact.csv", index=False)
    published = pd.read_csv("reports/counterfact/counterfact.csv")
    published.assign(RS=0.765432).to_csv("reports/counterfact/counterfact.csv", index=False)
    assert readme.main(["--check"]) == 1
    assert readme.main([]) == 0
    text = Path("README.md").read_text("utf-8")
    assert text.count("| 0.123 |") >= 5
    assert Path("docs/statistics.md").read_text("utf-8").count("| 43.2 (") == 2 * len(by_reference)
    assert "the edited layer alone explains 12% of the variance" in " ".join(text.split())
    assert "(ROME) loses 1.2 points of rewrite score (95% interval 2.8" in text
    assert "for error injection, 43.2 (3.6 to 13.9) and 1.2 (2.8 to 16.9)" in text  # of both runs' tables
    assert text.count("| 0.654 |") == measures["method"].nunique()  # each at one layer
    assert text.count("| 0.765 |") == published["method"].nunique()
    assert readme.main(["--check"]) == 0
    for file, blocks in readme.FILES.items():
        text, whole = file.read_text("utf-8"), (ROOT / file).read_text("utf-8")
        for name in blocks:  # all else is as it was
            text, whole = readme.filled(text, name, ""), readme.filled(whole, name, "")
        assert text == whole
    Path("README.md").write_text("nothing")
    assert readme.main([]) == 2
