"""The fact explorer's data: what a record says is what the tables say, and it stays small."""

import json
import zlib
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.report import extras
from pipeline.report.explorer import BUDGET, explorer, unpack
from pipeline.report.extras import TEXTS
from pipeline.tables import write, write_json
from tests.analysis.synthetic import PROBLEMS, Run, make_run
from tests.report.made import NASTY, Made, cheaper, explored, scored


def test_a_record_says_what_the_tables_say(made: Made) -> None:
    packed = explored(made.run, made.scores)
    index, records = json.loads(packed.index), json.loads(packed.records)
    assert (packed.shown, packed.total, len(records)) == (12, 12, 12)
    assert [fact["id"] for fact in index["facts"]] == [f"capital.{i:03d}" for i in range(12)]
    assert index["problems"][0] == ["error_injection", "error injection"]
    assert index["methods"] == [["rome", "ROME"]]
    assert index["layers"] == 30
    record = unpack(records[4])

    one = made.run.trace.query("fact_id == 'capital.004'")
    (traced,) = record["traces"]
    grid = one.pivot(index="token_index", columns="layer", values="effect").to_numpy()
    assert traced["n"] == "mlp, window of 5 layers"
    assert np.array(traced["e"]) * traced["u"] == pytest.approx(grid, abs=traced["u"])
    assert np.abs(traced["e"]).max() == 1000
    assert record["tokens"][1:3] == [[" capital$", 1], [" of", 1]]
    assert traced["c"] == round(1000 * one["p_clean"].iloc[0])

    assert [PROBLEMS[edit["p"]] for edit in record["edits"]] == list(PROBLEMS)
    erasure = record["edits"][2]
    rows = made.run.edits.query("fact_id == 'capital.004' and problem == 'fact_erasure' and layer == 7")
    assert [row[7] for row in erasure["post"]] == pytest.approx(1000 * rows["p_post"].to_numpy(), abs=0.5)
    assert erasure["pre"] == pytest.approx(1000 * rows["p_pre"].to_numpy(), abs=0.5)
    assert [row[7] for row in erasure["bpost"]] == pytest.approx(1000 * rows["p_baseline_post"].to_numpy(), abs=0.5)
    assert (erasure["t"], erasure["b"], erasure["bad"], erasure["c"]) == ("Paris", "Rome", {}, [])
    scores = made.scores.query("fact_id == 'capital.004' and problem == 'fact_erasure'").sort_values("layer")
    for score in ("rewrite", "paraphrase", "neighborhood", "overall"):
        assert erasure["s"][score] == pytest.approx(1000 * scores[score].to_numpy(), abs=0.5)
    assert index["facts"][4]["best"][0][2] == round(1000 * scores["rewrite"].max())
    assert [kind for kind, _ in record["prompts"]] == ["rewrite"] + ["paraphrase"] * 3 + ["neighborhood"] * 5
    assert record["prompts"][0][1] == f"The capital of {NASTY}4 is the city of"


def test_localizers_stand_by_layer_in_units_of_their_own(made: Made) -> None:
    packed = explored(made.run, made.scores)
    index, record = json.loads(packed.index), unpack(json.loads(packed.records)[4])
    assert index["localizers"] == ["attribution patching w5", "gradient norm"]
    table = cheaper(made.run).query("fact_id == 'capital.004'")
    assert [which for which, _, _ in record["loc"]] == [0, 1]
    for name, (_, unit, values) in zip(("attribution_patching_w5", "gradient_norm"), record["loc"], strict=True):
        own = table[table["localizer"] == name].sort_values("layer")["value"].to_numpy()
        assert np.array(values) * unit == pytest.approx(own, abs=unit)
        assert np.abs(values).max() == 1000
    some = cheaper(made.run).query("layer != 3 and fact_id != 'capital.000'")
    bare = explorer(made.run.facts, made.run.trace, made.run.edits, made.scores, some)
    first, second = (unpack(one) for one in json.loads(bare.records)[:2])
    assert first["loc"] == []
    assert second["loc"][0][2][3] is None
    assert None not in second["loc"][0][2][:3]


def test_a_failed_and_a_collapsed_edit_are_told(made: Made) -> None:
    run = make_run(2, 6)
    run.edits.loc[(run.edits["layer"] == 4) & (run.edits["problem"] == "fact_erasure"), "text_loss_post"] = 9.0
    first, second = (unpack(packed) for packed in json.loads(explored(run, scored(run)).records))
    injection, erasure = first["edits"][0], first["edits"][2]
    assert injection["bad"] == {"3": "the loss is not finite"}
    assert [row[3] for row in injection["post"]] == [None] * 9
    assert injection["s"]["rewrite"][3] is None
    assert erasure["c"] == second["edits"][2]["c"] == [4]
    assert second["edits"][0]["bad"] == {}


def test_each_trace_has_its_map_and_methods_their_edits() -> None:
    run = make_run(3, 6)
    trace = pd.concat([run.trace, run.trace.assign(window=1, effect=run.trace["effect"] / 2)])
    fewer = run.edits[run.edits["layer"].isin([1, 4])].assign(method="ft_l", update_key="", baseline="")
    both = Run(facts=run.facts, trace=trace, edits=pd.concat([run.edits, fewer], ignore_index=True))
    packed = explored(both, scored(both))
    record = unpack(json.loads(packed.records)[0])
    assert [traced["n"] for traced in record["traces"]] == ["mlp, window of 5 layers", "mlp, window of 1 layer"]
    assert record["traces"][1]["u"] == pytest.approx(record["traces"][0]["u"] / 2, rel=1e-5)
    assert json.loads(packed.index)["methods"] == [["rome", "ROME"], ["ft_l", "FT+L"]]
    assert [edit["l"] for edit in record["edits"]] == [list(range(6))] * 5 + [[1, 4]] * 5
    assert len(record["edits"][5]["post"][0]) == len(record["edits"][5]["s"]["overall"]) == 2


def test_generated_text_goes_with_its_fact() -> None:
    run = make_run(2, 3)
    texts = pd.DataFrame(
        {
            "fact_id": "capital.001", "method": ["unedited", "rome", "kn"], "layer": [-1, 2, -1], "prompt": "Fran1 is",
            "before": "in <b>", "after": ["in <b>", "in Rome", "é"],
        }
    )  # fmt: skip
    packed = explorer(run.facts, run.trace, run.edits, scored(run), cheaper(run), texts)
    first, second = (unpack(record) for record in json.loads(packed.records))
    assert first["texts"] == []
    assert second["texts"] == [["ROME", 2, "Fran1 is", "in <b>", "in Rome"], ["KN", -1, "Fran1 is", "in <b>", "é"]]


def test_text_of_another_run_is_not_shown(tmp_path: Path) -> None:
    texts = pd.DataFrame([dict.fromkeys(TEXTS, "a") | {"layer": 1}])
    write(texts, tmp_path / "table_texts.parquet")
    fits: dict[str, Any] = {"table": {"fits": True}}
    assert extras.texts(tmp_path, fits, "f") is None  # no record says what they were made of
    write_json({"model": "f"}, tmp_path / "measures" / "table.json")
    shown = extras.texts(tmp_path, fits, "f")
    assert shown is not None
    pd.testing.assert_frame_equal(shown, texts, check_dtype=False)
    assert extras.texts(tmp_path, fits, "another model") is None
    assert extras.texts(tmp_path, {"table": {"fits": False}}, "f") is None
    assert extras.texts(tmp_path, {}, "f") is None


def test_what_is_too_much_is_left_out_and_counted(made: Made) -> None:
    whole = explored(made.run, made.scores)
    room = sum(len(record) for record in json.loads(whole.records)[:5])
    some = explorer(made.run.facts, made.run.trace, made.run.edits, made.scores, cheaper(made.run), budget=room)
    assert (some.shown, some.total) == (5, 12)
    assert json.loads(some.records) == json.loads(whole.records)[:5]
    assert len(json.loads(some.index)["facts"]) == 5
    assert json.loads(some.index)["total"] == 12


def test_a_thousand_facts_fit(made: Made) -> None:
    records = json.loads(explored(made.run, made.scores).records)
    # Made-up numbers are noise in every digit, so that real ones pack better.
    assert sum(len(record) for record in records) / len(records) < BUDGET / 1000
    assert zlib.decompress(b64decode(records[0])).startswith(b"{")


def test_the_same_tables_give_the_same_bytes(made: Made) -> None:
    assert explored(made.run, made.scores) == explored(made.run, made.scores)
