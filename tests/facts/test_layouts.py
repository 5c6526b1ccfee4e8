"""Thirty records in each published layout, from the file to the table of facts, measured with a model that knows them.

The records say what the tests' small model was trained on (data/facts/tiny), in the fields, the order and with the
slips of the published files: spaces around targets and prompts, text before paraphrases, neighbors that are the fact.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.compute import inputs
from pipeline.edit.methods import load as load_params
from pipeline.facts.fact import EMBEDDED, Fact
from pipeline.facts.known import fact_prompt
from pipeline.facts.readers import read_facts
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel
from pipeline.settings.params import Params
from pipeline.tables import read
from stages import facts as facts_stage
from stages import model as model_stage
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL

RECORDS, COUNT = 30, 12
NAMES = {"home": "P551", "trade": "P106", "instrument": "P1303", "animal": "P1429"}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load(str(TINY_MODEL), device="cpu")


@pytest.fixture(scope="module")
def known() -> list[Fact]:
    return read_facts(EMBEDDED, TINY_FACTS, 0)[:RECORDS]


def counterfact(i: int, fact: Fact) -> dict[str, Any]:
    rewrite = {
        "prompt": fact.prompt, "relation_id": NAMES[fact.relation],
        "target_new": {"str": fact.target_false, "id": "Q2"}, "target_true": {"str": fact.target_true, "id": "Q1"},
        "subject": fact.subject,
    }  # fmt: skip
    before = f"The fair ended early, and rain came.\n\nSo it was. {fact.paraphrases[0]}"
    return {
        "case_id": i, "pararel_idx": 100 + i, "requested_rewrite": rewrite,
        "paraphrase_prompts": [before, f"{fact.paraphrases[1]} "],
        "neighborhood_prompts": [*fact.neighborhood, fact.text], "attribute_prompts": [], "generation_prompts": [],
    }  # fmt: skip


def flat(i: int, fact: Fact) -> dict[str, Any]:
    return {
        "case_id": i, "prompt": fact.text, "target_new": fact.target_false, "subject": fact.subject,
        "ground_truth": fact.target_true, "rephrase_prompt": fact.paraphrases[0],
        "locality_prompt": fact.neighborhood[0], "locality_ground_truth": fact.target_true,
    }  # fmt: skip


def known_1000(i: int, fact: Fact) -> dict[str, Any]:
    return {
        "known_id": i, "subject": fact.subject, "attribute": f" {fact.target_true}"[i % 2 == 0 :],
        "template": fact.prompt.rsplit(" ", 1)[0], "prediction": f" {fact.target_true}. And", "prompt": fact.text,
        "relation_id": NAMES[fact.relation],
    }  # fmt: skip


def zsre(i: int, fact: Fact) -> dict[str, Any]:
    return {
        "subject": fact.subject, "src": f"What is said of {fact.subject}, be it {fact.relation} or not?",
        "pred": fact.target_false, "rephrase": f"Of {fact.subject}, what is said?", "alt": fact.target_false,
        "answers": [fact.target_true, f"{fact.target_true} it is"], "loc": "nq question: who drew the first map",
        "loc_ans": "Nobody", "cond": f"{fact.target_true} >> {fact.target_false} || What is said?",
    }  # fmt: skip


LAYOUTS: dict[str, Callable[[int, Fact], dict[str, Any]]] = {
    "counterfact": counterfact, "counterfact_flat": flat, "known_1000": known_1000, "zsre": zsre,
}  # fmt: skip


def run(source: str, known: list[Fact], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Params, pd.DataFrame]:
    """The stages model and facts on thirty records of a layout; the settings and the table of facts."""
    monkeypatch.chdir(folder)
    path = Path(f"{source}.json")
    path.write_text(json.dumps([LAYOUTS[source](i, fact) for i, fact in enumerate(known)]), encoding="utf-8")
    smoke = load_params(ROOT / "presets" / "smoke.yaml")
    rule = smoke.facts.known.model_copy(update={"rule": "none" if source == "zsre" else "greedy"})
    changes = {"source": source, "path": str(path), "count": COUNT, "known": rule, "max_neighborhood": 9}
    params = smoke.model_copy(
        update={
            "model": smoke.model.model_copy(update={"name": str(TINY_MODEL), "device": "cpu"}),
            "facts": smoke.facts.model_copy(update=changes),
        }
    )
    model_stage.main(params)
    facts_stage.main(params)
    return params, read(Path("data/facts.parquet"))


@pytest.mark.parametrize("source", LAYOUTS)
def test_thirty_records_of_each_layout_become_chosen_facts(
    source: str, known: list[Fact], lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, table = run(source, known, tmp_path, monkeypatch)
    assert len(known) == RECORDS
    assert len(table) == RECORDS
    assert table["source"].unique().tolist() == [source]
    left_out = table[~table["kept"] & table["p_true"].isna()]
    sound = table.drop(left_out.index)
    # Only known_1000 states no false target: one is drawn, which has to be there.
    assert source == "known_1000" or left_out.empty
    assert table["kept"].sum() == COUNT
    assert table.loc[table["kept"], "fact_id"].tolist() == sound["fact_id"].tolist()[:COUNT]  # the file's order
    assert set(sound.loc[~sound["kept"], "drop_reason"]) == {f"not among the first {COUNT} known facts"}
    if source != "zsre":  # asked in words that the model was trained on
        assert sound["greedy_correct"].all()
        assert sound["p_true"].min() > 0.5
    by_subject = {(fact.subject, fact.target_true): fact for fact in known}
    for row in sound.to_dict("records"):
        fact = by_subject[row["subject"], row["target_true"]]
        one = Fact(**{key: row[key] for key in ("fact_id", "relation", "subject", "prompt")}
                   | {key: row[key] for key in ("target_true", "target_false")})  # fmt: skip
        if source == "zsre":
            assert one.text == f"Question: What is said of {fact.subject}, be it {fact.relation} or not? Answer:"
        else:
            assert (one.text, one.prompt) == (fact.text, fact.prompt)
        prompt = fact_prompt(lm, one)
        assert prompt.subject is not None
        start, stop = prompt.subject
        assert lm.tokenizer.decode(prompt.ids[start:stop]).strip() == fact.subject
        assert lm.tokenizer.decode(prompt.target_ids) == f" {fact.target_true}"
        if source != "known_1000":
            assert row["target_false"] == fact.target_false
        assert len(row["paraphrases"]) == {"counterfact": 2, "known_1000": 0}.get(source, 1)
        for text in (*row["paraphrases"], *row["neighborhood"]):
            assert text == text.strip(" ")
        # A prompt about the subject itself is no neighbor.
        assert not any(fact.subject in text for text in row["neighborhood"])
        if source == "counterfact":
            assert list(row["neighborhood"]) == list(fact.neighborhood)[: params.facts.max_neighborhood]
    assert [fact.fact_id for fact in inputs.facts()] == table.loc[table["kept"], "fact_id"].tolist()
    reasons = Counter(pd.read_csv("data/left_out.csv")["reason"])
    assert sum(reasons.values()) == len(left_out)
