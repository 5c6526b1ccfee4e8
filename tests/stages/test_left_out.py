"""The stage facts on a file with bad records: they are listed and the rest is measured, on a small model's folder."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.edit.methods import load
from pipeline.errors import UserError
from pipeline.report import account, sources
from stages import facts, model
from tests.facts import broken
from tests.lm.families import random_model, small_tokenizer
from tests.stages.mistakes import fact_file, setting
from tests.stages.projects import start

BAD = {3: {"case_id": 3}, 7: broken.counterfact(7) | {"paraphrase_prompts": 5}}
BAD[5] = broken.counterfact(5)
BAD[5]["requested_rewrite"]["prompt"] = "In {}, the capital of {} is"


def test_bad_records_are_listed_and_the_others_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    start()
    random_model("llama", torch.float32).model.save_pretrained("data/llama")
    small_tokenizer().save_pretrained("data/llama")
    setting("model.name", "data/llama")()
    setting("trace.windows", [1])()
    setting("facts.known", {"rule": "none", "within_tokens": 1, "min_p_true": 0.0})()
    fact_file("counterfact", [BAD.get(i, broken.counterfact(i)) for i in range(60)])()
    model.main(load())
    facts.main(load())
    assert Path("data/left_out.csv").read_text() == (
        "record,source_file,reason\n"
        "3,data/input.json,the record lacks 'requested_rewrite'\n"
        '5,data/input.json,"prompt holds {} several times; once, where the subject stands, is right"\n'
        "7,data/input.json,paraphrase_prompts is a number; a list of texts or a text is right\n"
    )
    assert len(pd.read_parquet("data/facts.parquet")) == 57
    assert account.left_out_sentence(sources.read_left_out(Path("data/left_out.csv"))).startswith(
        "3 records of the fact file"
    )
    setting("facts.max_left_out_share", 0.04)()
    with pytest.raises(UserError, match=r"input\.json: 3 of 60 records are broken, more than facts\.max_left_out"):
        facts.main(load())
