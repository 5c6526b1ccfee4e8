"""Page, figures and metrics of a made-up run: what they say, and that they hold and load nothing foreign."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis.regression import REGRESSION_COLUMNS, regression_table
from pipeline.analysis.scores import count_edits, score_table, trace_by_layer_table
from pipeline.analysis.targets import function_word_targets
from pipeline.errors import UserError
from pipeline.report import account, figures, sources
from pipeline.report import page as report
from pipeline.report.answer import answer
from pipeline.report.manifest import read_timings
from pipeline.report.metrics import metrics
from pipeline.report.r2 import r2_tables
from pipeline.report.scripts import SCRIPTS
from pipeline.report.section import chance, number
from pipeline.tables import read_json, write_csv
from tests.analysis.synthetic import PROBLEMS, make_run
from tests.report.made import DESIGN, LEFT_OUT, NASTY, PLAN, Made, Page, draw, scored


def test_everything_is_escaped(made: Made) -> None:
    page = Page(made.page)
    assert NASTY not in made.page
    assert made.page.count("<script") == 2 + len(SCRIPTS)
    assert [name for name, _ in page.scripts] == ["explorer-index", "explorer-records", *[None] * len(SCRIPTS)]
    assert f"The capital of {NASTY}0 is the city of" in page.text
    assert "Title & <b>more</b>" in page.text
    assert page.wrong == []
    assert page.open == []


def test_nothing_is_loaded_from_anywhere(made: Made) -> None:
    page = Page(made.page)
    shown = re.sub(r"<script.*?</script>", "", made.page, flags=re.DOTALL)
    assert "http:" not in shown.lower()
    assert "https:" not in shown.lower()
    assert "url(" not in shown
    assert "@import" not in made.page
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert len([source for source in sources if (source or "").startswith("data:image/")]) == 5
    assert all(source is not None and source.startswith(("data:", "#")) for source in sources)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "form"}


def test_pictures_are_inlined_with_their_captions(made: Made) -> None:
    images = [attributes for tag, attributes in Page(made.page).tags if tag == "img"]
    for image, picture in zip(images, made.pictures, strict=True):
        assert picture.caption in (image["alt"] or "")
        content = base64.b64decode((image["src"] or "").split(",", 1)[1])
        assert content == picture.svg.read_bytes()
        assert picture.png.read_bytes().startswith(b"\x89PNG")
        assert b"<image" in content or content.count(b"<path") > 20
        assert content.count(b"<text ") >= 5  # letters as letters, which are light and can be searched for


def test_a_heavy_figure_goes_in_as_pixels(made: Made, tmp_path: Path) -> None:
    heavy = tmp_path / "heavy.svg"
    heavy.write_bytes(b"<svg>" + b" " * 1_100_000 + b"</svg>")
    uri = report._data_uri(made.pictures[0]._replace(svg=heavy))
    assert uri.startswith("data:image/png;base64,")
    assert base64.b64decode(uri.split(",", 1)[1]) == made.pictures[0].png.read_bytes()


def test_many_points_are_pixels_within_vectors(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = next(one.svg for one in made.pictures if one.svg.stem == "score_against_trace").read_text("utf-8")
    monkeypatch.setattr(figures, "MANY_POINTS", 1)
    plot = figures.score_against_trace(made.scores, "rewrite", "fraction")
    assert plot.data is not None
    many = report.picture(plot, tmp_path, 60).svg.read_text("utf-8")
    layers = made.scores["layer"].nunique()
    assert (few.count("<image"), many.count("<image")) == (0, layers)
    assert few.count("<use") - many.count("<use") >= len(plot.data)
    assert many.count("R² ") == few.count("R² ") == layers  # letters and lines are drawn as before


def test_the_page_says_how_many_targets_are_function_words(made: Made) -> None:
    targets = pd.DataFrame(
        {"problem": ["tracing_reversal"], "facts": 10, "function_words": 9, "share": 0.9, "examples": "a, the"}
    )
    assert "is a function word (a, the) for 9 of 10 facts, a share of 90%;" in account.target_sentence(targets)
    assert account.target_sentence(targets[:0]) == ""
    assert account.target_sentence(function_word_targets(made.run.edits)) in Page(made.page).text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 1), (3, 8)])
def test_small_and_odd_runs_are_drawn_and_reported(shape: tuple[int, int], paper: pd.DataFrame, tmp_path: Path) -> None:
    run = make_run(*shape)
    scores = scored(run)
    regressions = regression_table(scores, ["rewrite", "overall", "paraphrase"], ["effect"], DESIGN)
    for plot in draw(run, scores, regressions, paper):
        assert plot.save(tmp_path, 50)[0].stat().st_size > 1000
    text = answer(regressions, "Model", 0.95, 2000)
    assert ("cannot answer" in text) == (shape in [(1, 1), (2, 3), (4, 1)])
    targets = function_word_targets(run.edits)
    numbers = metrics(regressions, scores, run.facts, count_edits(run.edits, 0.02), targets)
    json.dumps(numbers, allow_nan=False)


def test_several_trace_variants_have_a_panel_and_a_table_each(paper: pd.DataFrame, tmp_path: Path) -> None:
    run = make_run(4, 6)
    trace = pd.concat([run.trace, run.trace.assign(module="attn"), run.trace.assign(window=1)])
    scores = score_table(run.edits, run.facts, trace, 0.02)
    regressions = regression_table(scores, ["overall", "rewrite"], ["fraction", "effect"], DESIGN)
    plot = figures.trace_by_layer(trace_by_layer_table(trace, PLAN), 0.95)
    assert [ax.get_title() for ax in plot.figure.axes if ax.get_visible()] == [
        "attn, window of 5 layers",
        "mlp, window of 1 layer",
        "mlp, window of 5 layers",
    ]
    tables = r2_tables(regressions, paper)
    assert len(tables) == 3 * 2 * 2
    assert tables[0]["name"].startswith("Rewrite score, ROME")
    assert len({table["name"] for table in tables}) == 12
    assert all(len(table["rows"]) == 5 for table in tables)


def regressions_with(**columns: Any) -> pd.DataFrame:
    plain = dict.fromkeys(REGRESSION_COLUMNS, 0.5)
    rows = pd.DataFrame({"problem": ["error_injection", "fact_erasure"]}).assign(
        **plain | {
            "problem": ["error_injection", "fact_erasure"], "method": "rome", "score": "rewrite", "trace_module": "mlp",
            "trace_window": 5, "trace_measure": "fraction", "n_facts": 100, "n_relations": 4, "r2_layer": [0.9, 0.8],
            "r2_diff": [0.02, 0.01], "chance": [0.001, 0.002], "gain_bound": [0.04, 0.03],
        }
    )  # fmt: skip
    return rows.assign(**columns)


def test_the_answer_is_made_of_the_numbers() -> None:
    text = answer(regressions_with(), "Model", 0.95, 2000)
    assert "In Model, edited with ROME on 100 facts" in text
    assert "80 to 90% of the variance of the rewrite score (error injection and fact erasure)" in text
    assert "adds 1.0 to 2.0 points" in text
    assert "would add 0.1 to 0.2" in text
    assert "not shown to be more than chance for any problem (smallest corrected p 0.5)" in text
    assert "not shown to go better, or worse, at the layers where it traces higher" in text
    assert "above 3.0 to 4.0 points is ruled out at 95%" in text


def test_the_answer_says_when_no_test_could_have_found_anything() -> None:
    rows = regressions_with(permutation_pvalue=1 / 20, permutation_holm=0.1)  # 2 tests by 19 dealings
    assert answer(rows, "Model", 0.95, 19).count(
        "no proof that it is chance: of 2 tests by 19 dealings none can have a corrected p below 0.1, so that nothing "
        "could be found."
    )  # fmt: skip
    assert "none can have" not in answer(rows, "Model", 0.95, 39)  # 2 / 40 is the level itself


def test_a_gain_is_not_said_to_be_a_layer() -> None:
    text = answer(regressions_with(permutation_holm=[0.01, 0.2]), "Model", 0.95, 2000)
    assert "more than chance for error injection; this may be that some facts are easier" in text
    assert "not shown to go better" in text
    text = answer(regressions_with(within_holm=[0.01, 0.02], within_slope=[-0.3, 0.2]), "Model", 0.95, 2000)
    assert "higher than its relation does, better for fact erasure and worse for error injection" in text


def test_the_answer_says_nothing_by_what_is_withheld() -> None:
    sure = {"permutation_holm": 0.001, "within_holm": 0.001, "permutation_pvalue": 0.001, "f_pvalue": 0.0}
    text = answer(regressions_with(n_facts=5, **sure), "Model", 0.95, 2000)
    assert "this decides nothing" in text
    assert "ruled out" not in answer(regressions_with(n_facts=12, **sure), "Model", 0.95, 2000)
    nothing = dict.fromkeys(["r2_layer", "r2_diff", "chance"], np.nan)
    text = answer(regressions_with(n_facts=2, **nothing), "Model", 0.95, 2000)
    assert "cannot answer the question: with 2 facts" in text


def test_the_papers_figures_stand_beside_ours(made: Made, paper: pd.DataFrame) -> None:
    table = r2_tables(made.regressions, paper)[0]
    row = next(row for row in table["rows"] if row["ours"]["problem"] == "error_injection")
    assert (row["paper"]["r2_layer"], row["paper"]["r2_trace"], row["paper"]["r2_both"]) == (
        0.947,
        0.016,
        0.948,
    )
    assert row["paper"]["p_value"] == "<1e-4"
    ours = made.regressions.query("problem == 'error_injection' and score == 'rewrite'").iloc[0]
    assert row["ours"]["r2_layer"] == ours["r2_layer"]
    text = Page(made.page).text
    assert "0.947" in text
    assert f"{ours['r2_layer']:.3f}" in text


def test_means_over_all_prompts_have_no_row_of_the_paper(paper: pd.DataFrame) -> None:
    for score, there in (
        ("paraphrase", False),
        ("overall", False),
        ("neighborhood", False),
        ("paraphrase_first", True),
    ):
        assert r2_tables(regressions_with(score=score), paper)[0]["paper"] == there, score


def test_unknown_cells_of_the_paper_are_dashes(paper: pd.DataFrame) -> None:
    rows = regressions_with(method="memit", score="neighborhood_first", problem=["fact_forcing", "fact_amplification"])
    first, second = r2_tables(rows, paper)[0]["rows"]
    assert first["paper"]["r2_layer"] is None
    assert second["paper"]["r2_layer"] == 0.035
    assert second["paper"]["r2_trace"] is None
    assert (number(None), chance(float("nan")), chance(0.00001)) == ("–", "–", "<1e-4")


def test_facts_and_reasons_are_listed(made: Made) -> None:
    text = re.sub(r"\s+", " ", Page(made.page).text)
    assert "12 of 52 candidate facts" in text
    assert "the model continues otherwise 28" in text
    assert "known, but beyond facts.count 12" in text
    assert all(f"capital.{i:03d}" in text for i in range(12))
    assert "dropped.0" not in text
    assert "error injection rome scored 359 12" in text
    assert "error injection rome no score: the loss is not finite 1 1" in text


def test_the_page_says_how_many_records_were_left_out_and_why(made: Made) -> None:
    text = re.sub(r"\s+", " ", Page(made.page).text)
    told = "3 records of the fact file were left out (data/left_out.csv lists them); the reasons: "
    assert f"{told}{NASTY} 0 (2); subject is empty (1)." in text
    assert account.left_out_sentence(LEFT_OUT[:0]) == ""
    assert account.left_out_sentence(LEFT_OUT[:1]) == (
        "1 record of the fact file was left out (data/left_out.csv lists it); the reason: subject is empty (1)."
    )
    many = pd.DataFrame({"reason": list("aabbcdd")})
    assert account.left_out_sentence(many).endswith("them); the commonest reasons: a (2); b (2); d (2).")


def test_the_list_of_records_left_out_is_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "left_out.csv"
    write_csv(LEFT_OUT.assign(reason=["NA", "007", 'a "b", c']), path)
    assert sources.read_left_out(path).to_numpy().tolist() == [
        ["3", "facts.json", "NA"], ["5", "facts.json", "007"], ["8", "facts.json", 'a "b", c']
    ]  # fmt: skip
    write_csv(LEFT_OUT[:0], path)
    assert account.left_out_sentence(sources.read_left_out(path)) == ""
    path.write_text("record,reason\n")
    with pytest.raises(UserError, match=r"left_out\.csv: has no column source_file; delete it and run dvc repro"):
        sources.read_left_out(path)


def test_the_manifest_is_on_the_page(made: Made) -> None:
    text = re.sub(r"\s+", " ", Page(made.page).text)
    for told in (
        "model.layers 30",
        "statistics.condition [1.5, 2.5]",
        "params.seed 7",
        "stages.trace.seconds 12.5",
    ):
        assert told in text
    assert "versions.torch 2.0" in text


def test_metrics_are_nested_numbers(made: Made) -> None:
    targets = function_word_targets(made.run.edits)
    numbers = metrics(made.regressions, made.scores, made.run.facts, made.counts, targets)
    assert set(numbers["function_word_targets"]) == set(PROBLEMS)
    assert numbers["facts"] == {"candidates": 52, "used": 12}
    assert numbers["edits"] == {"scored": 5 * 360 - 1, "left_out": 1, "collapsed": 0}
    means = made.scores.query("problem == 'fact_erasure'").groupby("layer")["rewrite"].mean()
    erasure = numbers["rome"]["fact_erasure"]
    assert erasure["rewrite"]["best_layer"] == means.idxmax()
    assert isinstance(erasure["rewrite"]["best_layer"], int)
    assert erasure["rewrite"]["best"] == pytest.approx(means.max())
    row = made.regressions.query("problem == 'fact_erasure' and score == 'rewrite'").iloc[0]
    assert erasure["rewrite_r2"]["gain_high"] == pytest.approx(row["gain_high"])

    def leaves(tree: dict[str, Any]) -> list[Any]:
        return [leaf for value in tree.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]

    assert all(isinstance(leaf, int | float) for leaf in leaves(numbers))


def test_csv_has_ten_digits_and_reads_back(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "new" / "regressions.csv"
    write_csv(made.regressions, path)
    back = pd.read_csv(path)
    pd.testing.assert_frame_equal(back, made.regressions, rtol=1e-9, check_dtype=False)
    assert list(back.columns) == list(made.regressions.columns)
    assert [file.name for file in path.parent.iterdir()] == ["regressions.csv"]


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"paper\.csv: no such file"):
        sources.read_paper(tmp_path / "paper.csv")
    (tmp_path / "paper.csv").write_text("score,problem\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"has no column method but must have"):
        sources.read_paper(tmp_path / "paper.csv")
    with pytest.raises(UserError, match=r"model\.json: no such file; run dvc repro"):
        read_json(tmp_path / "model.json")
    (tmp_path / "model.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.json: is not JSON"):
        read_json(tmp_path / "model.json")
    assert read_timings(tmp_path / "timings") == []
