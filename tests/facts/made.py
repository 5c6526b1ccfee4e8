"""Fact files as small as they can be, for the tests of the readers."""

import json
from pathlib import Path
from typing import Any

from pipeline.facts.choose import KnownRule
from pipeline.facts.fact import Fact

CARRIED = Path(__file__).parents[2] / "data" / "facts" / "wikidata"
HEADER = "relation\tname\tprompt\tparaphrase_1\tparaphrase_2\tparaphrase_3\tparaphrase_4"
RELATIONS = [HEADER, "lang\tlanguage\t{} speaks\tIn {} one hears\tTo visit {}, learn\tSchools in {} teach\t"]
ROWS = [
    f"lang\t{name}\t{tongue}" for tongue in ("Norse", "Latin") for name in (f"{tongue[0]}town {i}" for i in range(6))
]


def write_table(folder: Path, relations: list[str] = RELATIONS, rows: list[str] = ROWS) -> Path:
    (folder / "relations.tsv").write_text("\n".join(relations) + "\n", encoding="utf-8")
    lines = ["relation\tsubject\ttarget_true", *rows]
    (folder / "facts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_json(folder: Path, content: Any) -> Path:
    path = folder / "facts.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def counterfact(**changes: Any) -> dict[str, Any]:
    rewrite = {
        "prompt": "The river {} flows into the",
        "relation_id": "P403",
        "target_new": {"str": "Baltic", "id": "Q2"},
        "target_true": {"str": "Atlantic", "id": "Q1"},
        "subject": "Loire",
    }
    record = {
        "case_id": 7,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": ["Two lines.\nThe Loire ends in the", "Loire's mouth is on the"],
        "neighborhood_prompts": ["The river Douro flows into the"],
        "generation_prompts": ["Loire is"],
    }
    rewrite.update({k: v for k, v in changes.items() if k in rewrite})
    record.update({k: v for k, v in changes.items() if k not in rewrite})
    return record


def flat(**changes: Any) -> dict[str, Any]:
    record = {
        "case_id": 3,
        "prompt": "Parisian cafes are found in Paris, the capital of",
        "subject": "Paris",
        "ground_truth": "France",
        "target_new": "Spain",
        "rephrase_prompt": "To reach Paris, travel to",
        "locality_prompt": "Lyon is in",
        "locality_ground_truth": "France",
    }
    return record | changes


def known_record(number: int, subject: str, attribute: str, relation: str = "P103", **changes: Any) -> dict[str, Any]:
    record = {
        "known_id": number,
        "subject": subject,
        "attribute": attribute,
        "template": "The tongue of {}",
        "prediction": f" {attribute}.",
        "prompt": f"The tongue of {subject} is",
        "relation_id": relation,
    }
    return record | changes


def zsre(**changes: Any) -> dict[str, Any]:
    record = {
        "subject": "Watts Hall",
        "src": "Who was the architect of Watts Hall?",
        "pred": "Someone",
        "rephrase": "Which architect drew Watts Hall?",
        "alt": "Bauhaus",
        "answers": ["Ada Rowe", "A. Rowe"],
        "loc": "nq question: who wrote the oldest map",
        "loc_ans": "Anon",
        "cond": "a >> b || c",
    }
    return record | changes


def fact(fact_id: str = "a", relation: str = "r", target: str = "Oslo", **changes: Any) -> Fact:
    fields: dict[str, Any] = {
        "fact_id": fact_id,
        "relation": relation,
        "subject": f"Subject {fact_id}",
        "prompt": "{} lives in",
        "target_true": target,
        "target_false": "Nowhere",
    }
    return Fact(**{**fields, **changes})


GREEDY = KnownRule(rule="greedy", within_tokens=36, min_p_true=0.0)
