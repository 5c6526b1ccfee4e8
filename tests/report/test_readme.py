"""The README's results are those of the committed tables, and follow when these change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import UserError
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
    shutil.copy(ROOT / "README.md", "README.md")
    table = pd.read_csv("reports/default-run/regressions.csv")
    table["r2_layer"] = 0.123456
    table.to_csv("reports/default-run/regressions.csv", index=False)
    choices = pd.read_csv("reports/second-model/layers.csv")
    choices.assign(regret=0.0123).to_csv("reports/second-model/layers.csv", index=False)
    measures = pd.read_csv("reports/default-run/counterfact.csv")
    measures.assign(S=0.654321).to_csv("reports/default-run/counterfact.csv", index=False)
    published = pd.read_csv("reports/counterfact/counterfact.csv")
    published.assign(RS=0.765432).to_csv("reports/counterfact/counterfact.csv", index=False)
    assert readme.main(["--check"]) == 1
    assert readme.main([]) == 0
    text = Path("README.md").read_text("utf-8")
    assert text.count("| 0.123 |") >= 5
    assert "the edited layer alone explains 12% of the variance" in " ".join(text.split())
    assert "(ROME) loses 1.2 points of rewrite score (95% interval 2.8" in text
    assert text.count("| 0.654 |") == measures["method"].nunique()  # each at one layer
    assert text.count("| 0.765 |") == published["method"].nunique()
    assert readme.main(["--check"]) == 0
    whole = (ROOT / "README.md").read_text("utf-8")
    for name in readme.BLOCKS:  # all else is as it was
        text, whole = readme.filled(text, name, ""), readme.filled(whole, name, "")
    assert text == whole
    Path("README.md").write_text("nothing")
    assert readme.main([]) == 2


def test_without_the_null_block_r2_is_that_of_the_other_rows(tmp_path: Path) -> None:
    """Five facts at three layers, the last of them all 0: once from all rows and once from means and R² alone."""
    scores = pd.DataFrame(
        {
            "layer": [0] * 5 + [1] * 5 + [2] * 5,
            "rewrite": [0.9, 0.8, 0.7, 1.0, 0.6, 0.3, 0.5, 0.2, 0.4, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0],
        }
    )

    def r2(rows: pd.DataFrame) -> float:
        means = rows.groupby("layer")["rewrite"].transform("mean")
        return float(
            1 - ((rows["rewrite"] - means) ** 2).sum() / ((rows["rewrite"] - rows["rewrite"].mean()) ** 2).sum()
        )

    means = (
        scores.groupby("layer")["rewrite"].agg(rewrite="mean", n="count").reset_index().assign(problem="fact_erasure")
    )
    means.to_csv(tmp_path / "rewrite_by_layer.csv", index=False)
    found = readme.without_null_block(tmp_path, "fact_erasure", r2(scores))
    assert found == pytest.approx(r2(scores[scores["layer"] < 2]), rel=1e-12)
    means.assign(rewrite=means["rewrite"] + 0.1).to_csv(tmp_path / "rewrite_by_layer.csv", index=False)
    with pytest.raises(UserError, match="is no null block"):
        readme.without_null_block(tmp_path, "fact_erasure", 0.5)
