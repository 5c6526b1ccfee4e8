"""A table of what users do wrong: how to do it in a project folder, which stage meets it, and what that has to say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.facts import broken as valid

Break = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A mistake, made by `spoil` in the current folder; the stage that meets it; what the sentence has to hold."""

    name: str
    stage: str
    spoil: Break
    told: tuple[str, ...]


CASES: list[Case] = []


def case(name: str, stage: str, spoil: Break, *told: str) -> None:
    CASES.append(Case(name, stage, spoil, told))


def put(path: str, content: bytes | str) -> Break:
    data = content.encode("utf-8") if isinstance(content, str) else content
    return lambda: Path(path).write_bytes(data)


def gone(path: str) -> Break:
    return lambda: shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()


def folder_for(path: str) -> Break:
    def spoil() -> None:
        Path(path).unlink()
        Path(path).mkdir()

    return spoil


def cut(path: str, share: float = 0.5) -> Break:
    def spoil() -> None:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: int(share * len(whole))])

    return spoil


# Settings


def setting(dotted: str, *value: Any) -> Break:
    """Set a key of params.yaml, or take it out where no value is given."""

    def spoil() -> None:
        yaml = YAML(typ="safe", pure=True)
        tree = inner = yaml.load(Path("params.yaml").read_text("utf-8"))
        *sections, key = dotted.split(".")
        for section in sections:
            inner = inner[section]
        inner.pop(key, None)
        if value:
            inner[key] = value[0]
        with Path("params.yaml").open("w", encoding="utf-8") as file:
            yaml.dump(tree, file)

    return spoil


for dotted, value, *told in (
    ("rome.stepps", [20], "rome.stepps is no key", "did you mean rome.steps?"),
    ("compute.worker", [2], "compute.worker is no key", "did you mean compute.workers?"),
    ("regresions", [{}], "regresions is no key", "did you mean regressions?"),
    ("noise.windows", [[5]], "noise.windows is no key", "did you mean trace.windows?"),
    ("quux", [1], "quux is no key", "seed, model, facts"),
    ("noise.sd", [], "noise.sd is missing", "null, or a number above 0"),
    ("trace", [], "the section trace is missing", "modules, windows"),
    ("rome.steps", ["20"], "rome.steps is the text '20'", "whole number", "without quotes"),
    ("rome.steps", [True], "rome.steps is true", "whole number"),
    ("noise.multiple", [None], "noise.multiple is null", "a number above 0"),
    ("facts", [["wikidata"]], "facts is a list", "source, path"),
    ("rome.steps", [0], "rome.steps is 0", "at least 1"),
    ("seed", [2**64], "seed is a number of 65 bits", "0 to 2**63 - 1"),
    ("rome.learning_rate", [float("nan")], "rome.learning_rate is nan", "above 0"),
    ("regressions.confidence", [95], "regressions.confidence is 95", "such as 0.95"),
    ("edit.layers", [[0, -1]], "edit.layers[1] is -1", "counted from 0"),
    ("edit.problems", [["error_injektion"]], "edit.problems[0]", "did you mean error_injection?"),
    ("trace.windows", [[5, 5]], "trace.windows holds 5 twice", "once"),
    ("localize.methods", ["gradient_norm"], "localize.methods is the text 'gradient_norm'", "which may be empty, of"),
    ("localize.methods", [["gradient_norms"]], "localize.methods[0]", "did you mean gradient_norm?"),
    ("localize.methods", [["gradient_norm"] * 2], "localize.methods holds gradient_norm twice", "once"),
    ("localize.gradients", [0], "localize.gradients is 0", "1 to 1000"),
    ("model.revision", ["main"], "model.revision is 'main'", "null for trained:tiny"),
    ("table.snippets", ["data/facts.json"], "table.snippets is data/facts.json", "unless facts.source is counterfact"),
    ("statistics.tokens", [10], "statistics.tokens is 10", "statistics.sequence_length"),
    ("facts.max_neighborhood", [0], "facts.max_neighborhood is 0", "raise it"),
    ("facts.max_left_out_share", [-0.1], "facts.max_left_out_share is -0.1", "0 to 1"),
    ("facts.max_left_out_share", ["5%"], "facts.max_left_out_share is the text '5%'", "a share from 0 to 1"),
    ("facts.path", ["../facts"], "facts.path is the text '../facts'", "without .."),
    ("facts.path", ["~/facts"], "facts.path is the text '~/facts'", "absolute"),
    ("model.name", ["data/../../model"], "model.name is the text 'data/../../model'", "without .."),
):  # fmt: skip
    case(f"{dotted} {value}", "facts", setting(str(dotted), *value), "params.yaml: ", *told)

for name, raw, *words in (
    ("empty", b"", "found null", "mapping of the sections"),
    ("not UTF-8", b"seed: 0 # caf\xe9\n", "byte 13 is not UTF-8"),
    ("UTF-16", "seed: 0\n".encode("utf-16"), "byte 0 is not UTF-8"),
    ("tab", b"noise:\n\tsd: null\n", "line 2, column 1", "indented by spaces"),
    ("key twice", b"seed: 0\nseed: 1\n", "seed is there twice", "keep one"),
    ("open bracket", b"trace:\n  windows: [5\n", "line 3", "not YAML"),
    ("brackets in brackets", b"seed: " + b"[" * 3000, "has 3000 opening brackets", "at most 500"),
    ("dashes in dashes", b"- " * 20_000, "not YAML"),
    ("a megabyte", b"seed: '" + b"x" * 10**6 + b"'\n", "has 1000009 characters", "at most 50000"),
    ("an object of Python's", b"seed: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ("NUL", b"seed: 0\0\n", "not YAML"),
):
    case(f"params.yaml {name}", "facts", put("params.yaml", raw), "params.yaml: ", *words)
case("params.yaml missing", "facts", gone("params.yaml"), "params.yaml: no such file", "presets/default.yaml")
case(
    "params.yaml a folder",
    "facts",
    folder_for("params.yaml"),
    "params.yaml: ",
    "text file",
)
case("layer beyond the model", "trace", setting("edit.layers", [0, 6]), "edit.layers holds 6", "0 to 5")
case("window beyond the model", "trace", setting("trace.windows", [7]), "trace.windows holds 7", "1 to 6")


# Facts

INPUT = "data/input.json"


def fact_file(source: str, content: Any) -> Break:
    """A fact file for facts.source: bytes as they are, anything else as JSON."""

    def spoil() -> None:
        Path(INPUT).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        setting("facts.source", source)()
        setting("facts.path", INPUT)()

    return spoil


def counterfact(**changes: Any) -> list[dict[str, Any]]:
    """Two records, the second one changed; None takes a key out."""
    record = valid.counterfact(1)
    for key, new in changes.items():
        inner = record["requested_rewrite"] if key in record["requested_rewrite"] else record
        inner[key] = new
        if new is None:
            del inner[key]
    return [valid.counterfact(0), record]


TOO_MANY = (f"{INPUT}: 1 of 2 records are broken", "facts.max_left_out_share 0.05", "(1, first in record 1)")
for name, given, *words in (
    ("empty file", b"", INPUT, "is not JSON"),
    ("cut short", json.dumps(counterfact()).encode()[:300], INPUT, "is not JSON", "list of records"),
    ("Latin-1", "[\"Zürich\"]".encode("latin-1"), INPUT, "is not UTF-8 text (byte 3)"),
    ("UTF-16", json.dumps(counterfact()).encode("utf-16"), INPUT, "is not UTF-8 text (byte 0)"),
    ("an object", {"case_id": 1}, INPUT, "holds a JSON dict", "a list of records"),
    ("no records", [], INPUT, "no fact that can be edited", "no records"),
    ("nested without end", b"[" * 100_000, INPUT, "is not JSON"),
    ("a number for a record", [valid.counterfact(0), 3], *TOO_MANY, "the record is a number; a JSON object is right"),
    ("no prompt", counterfact(prompt=None), *TOO_MANY, "requested_rewrite lacks 'prompt'"),
    ("no rewrite", counterfact(requested_rewrite=None), *TOO_MANY, "the record lacks 'requested_rewrite'"),
    ("empty subject", counterfact(subject=""), *TOO_MANY, "subject is empty"),
    ("blank target", counterfact(target_true={"str": " "}), *TOO_MANY, "target_true is empty"),
    ("a number for a target", counterfact(target_new={"str": 5}), *TOO_MANY, "target_new.str is a number; a text"),
    ("no place for the subject", counterfact(prompt="The Loire flows into the"), *TOO_MANY, "holds {} nowhere; once"),
    ("two places for the subject", counterfact(prompt="{} and {} meet the"), *TOO_MANY, "holds {} several times; once"),
    ("equal targets", counterfact(target_new={"str": "Atlantic"}), *TOO_MANY, "target_false are the same"),
    ("line break in the subject", counterfact(subject="Lo\nire"), *TOO_MANY, "subject holds", "U+000A"),
    ("escape in a target", counterfact(target_true={"str": "Paris\x1b[31m"}), *TOO_MANY, "target_true holds", "U+001B"),
    ("NUL in the prompt", counterfact(prompt="The {}\0 flows into"), *TOO_MANY, "prompt holds", "U+0000"),
    ("half a surrogate", counterfact(subject="Lo\ud800ire"), *TOO_MANY, "U+D800"),
    ("100 kB subject", counterfact(subject="L" * 100_000), *TOO_MANY, "subject has more than 1000 characters"),
    ("100 kB prompt", counterfact(prompt="{}" + "L" * 100_000), *TOO_MANY, "prompt has more than 10000 characters"),
    ("an id twice", counterfact(case_id=0), *TOO_MANY, "its id is that of an earlier record"),
    ("id with a space", counterfact(case_id="a b"), *TOO_MANY, "letters A-Z"),
    ("id with a line break", counterfact(case_id="a\nb"), *TOO_MANY, "letters A-Z"),
    ("paraphrases a number", counterfact(paraphrase_prompts=3), *TOO_MANY, "paraphrase_prompts is a number; a list of"),
    ("a number for a neighbor", counterfact(neighborhood_prompts=["fine", 1]), *TOO_MANY, "neighborhood_prompts holds"),
):  # fmt: skip
    case(f"counterfact {name}", "facts", fact_file("counterfact", given), *words)
NONE_LEFT = (f"{INPUT} holds no fact that can be edited", "none of 1 records", "(1, first in record 0)")
for source, one, *words in (
    ("counterfact_flat", valid.flat(0) | {"subject": "London"}, "subject does not occur in its prompt"),
    ("counterfact_flat", valid.flat(0) | {"ground_truth": None}, "ground_truth is null; a text is right"),
    ("known_1000", valid.known(0) | {"attribute": ""}, "attribute is empty"),
    ("known_1000", valid.known(0), "no other attribute in its relation"),
    ("zsre", valid.zsre(0) | {"answers": []}, "answers is empty"),
    ("zsre", valid.zsre(0) | {"alt": "Ada Rowe"}, "alt is one of the true answers"),
):
    case(f"{source} {words[0]}", "facts", fact_file(str(source), [one]), *NONE_LEFT, *words)

TINY = "data/facts/tiny"


def tsv(name: str, change: Callable[[list[str]], object]) -> Break:
    """Change the lines of one of the embedded table's files."""

    def spoil() -> None:
        path = Path(TINY) / name
        lines = path.read_text("utf-8").splitlines()
        change(lines)
        path.write_text("\n".join(lines) + "\n", "utf-8")

    return spoil


def line(number: int, change: Callable[[str], str]) -> Callable[[list[str]], object]:
    def spoil(lines: list[str]) -> None:
        lines[number - 1] = change(lines[number - 1])

    return spoil


def bad_rows(first: int, change: Callable[[str], str]) -> Break:
    """Change ten rows of the table, the first in this line; 96 rows allow four."""
    return tsv("facts.tsv", lambda lines: lines.__setitem__(at := slice(first - 1, first + 9), map(change, lines[at])))


FACTS_TSV, RELATIONS_TSV = f"{TINY}/facts.tsv", f"{TINY}/relations.tsv"
MANY_ROWS = (f"{TINY}: 10 of 96 records are broken", "facts.max_left_out_share 0.05", "(10, first in record 1)")
for name, spoil, *words in (
    ("no facts.tsv", gone(FACTS_TSV), FACTS_TSV, "can't be read", "No such file"),
    ("no folder", gone(TINY), TINY, "is not a folder", "relations.tsv"),
    ("Latin-1", put(FACTS_TSV, "relation\tsubject\ttarget_true\nP1\tZürich\tx\n".encode("latin-1")), FACTS_TSV,
     "is not UTF-8"),
    ("a misspelt column", tsv("facts.tsv", line(1, lambda t: t.replace("subject", "sbject"))), FACTS_TSV, "header",
     "subject"),
    ("a missing column", tsv("facts.tsv", line(1, lambda t: t.rpartition("\t")[0])), FACTS_TSV, "header",
     "target_true"),
    ("missing cells", bad_rows(3, lambda t: t.rpartition("\t")[0]), *MANY_ROWS, "2 cells", "3"),
    ("empty cells", bad_rows(3, lambda t: t.rpartition("\t")[0] + "\t"), *MANY_ROWS, "target_true is empty"),
    ("an unknown relation", bad_rows(3, lambda t: "P0\t" + t.partition("\t")[2]), *MANY_ROWS,
     "its relation is not in relations.tsv"),
    ("rows twice", tsv("facts.tsv", lambda lines: lines.extend(lines[1:11])), f"{TINY}: 10 of 106 records",
     "the same fact stands in an earlier row (10, first in record 96)"),
    ("NUL", bad_rows(3, lambda t: t + "\0"), *MANY_ROWS, "target_true", "U+0000"),
    ("empty rows", bad_rows(3, lambda t: ""), *MANY_ROWS, "the row is empty"),
    ("a template without a place", tsv("relations.tsv", line(2, lambda t: t.replace("{}", "it"))),
     f"{RELATIONS_TSV}, line 2", "must hold {} once"),
    ("an empty template", tsv("relations.tsv", line(2, lambda t: "\t".join([*t.split("\t")[:2], "\u200b",
     *t.split("\t")[3:]]))), f"{RELATIONS_TSV}, line 2", "prompt is empty"),
    ("a relation twice", tsv("relations.tsv", lambda lines: lines.append(lines[1])), RELATIONS_TSV,
     "has a row already"),
    ("a relation that is not there", setting("facts.relations", ["P0"]), "facts.relations names 'P0'",
     "the fact file has"),
):  # fmt: skip
    case(f"embedded {name}", "facts", spoil, *words)
