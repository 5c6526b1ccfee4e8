"""A project folder as the stages `model`, `facts` and `statistics` leave it, made up without a model.

All of it works on the current folder, as the stages do.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file

from pipeline.compute import inputs, probe, statistics
from pipeline.compute.known_job import KnownJob
from pipeline.compute.store import Store
from pipeline.edit.methods import load
from pipeline.facts.choose import KnownRule, choose, facts_to_frame
from pipeline.facts.fact import Known
from pipeline.facts.reading import left_out_frame
from pipeline.settings.params import Params
from pipeline.tables import to_arrow, write, write_csv, write_json
from tests.conftest import ROOT, TINY_MODEL

MODEL = {
    "name": "trained:tiny", "source": "cached:tiny",
    "fingerprint": "f" * 32, "layers": 6, "key_size": 4, "dtype": "float32", "add_bos": False,
    "fast_path": True,
}  # fmt: skip


def start() -> None:
    """The smoke preset, its facts, and what those stages write."""
    shutil.copy(ROOT / "presets" / "smoke.yaml", "params.yaml")
    shutil.copytree(ROOT / "data" / "facts" / "tiny", "data/facts/tiny")
    write_json(MODEL, Path("data/model.json"))
    upstream()


def change(**sections: dict[str, Any]) -> Params:
    """Set keys of params.yaml's sections."""
    return _with(Path("params.yaml"), Path("params.yaml"), sections)


def on_committed_model(folder: Path, **sections: dict[str, Any]) -> Params:
    """A params.yaml in `folder`: the smoke preset on the committed model, with keys of its sections set."""
    model = {"name": str(TINY_MODEL), "device": "cpu"}
    changes = {**sections, "model": model | sections.get("model", {})}
    return _with(ROOT / "presets" / "smoke.yaml", folder / "params.yaml", changes)


def _with(source: Path, target: Path, sections: dict[str, dict[str, Any]]) -> Params:
    yaml = YAML()
    tree = yaml.load(source.read_text("utf-8"))
    for section, keys in sections.items():
        tree[section].update(keys)
    with target.open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)
    return load(target)


def upstream() -> None:
    """What the stages facts and statistics write, with made-up measurements."""
    settings, store = load(), Store("data/store")
    file = inputs.candidates(settings)
    job = KnownJob(settings, MODEL, tuple(file.facts))
    for unit in job.units():
        rows = [asdict(Known(0.9, True, True)) for _ in unit.item[0]]
        store.put_table("known", unit.key, to_arrow(pd.DataFrame(rows)), unit.label)
    known = [Known(0.9, True, True)] * len(file.facts)
    chosen = choose(file.facts, known, KnownRule(**settings.facts.known.model_dump()), settings.facts.count)
    write(facts_to_frame(file.facts, known, chosen), Path("data/facts.parquet"))
    write_csv(left_out_frame(file.left_out), Path("data/left_out.csv"))
    subjects = len({fact.subject for fact in file.facts})
    write_json({"embedding_sd": 0.1, "subjects": subjects}, Path("data/embedding_sd.json"))
    folder = Path("data/statistics")
    write_json({"key": "k", "source_key": statistics.source_key(settings, MODEL)}, folder / "manifest.json")
    write_json(["", "Once"], folder / "contexts.json")
    ids = [[0] * settings.edit.text_tokens]
    write_json({"key": probe.key_of(settings, MODEL), "ids": ids}, folder / "probe.json")
    unit_moments(folder, size=4, blocks=6)


def unit_moments(folder: Path, *, size: int, blocks: int) -> None:
    """Second moments of keys that are all as long and point anywhere: the identity for each block."""
    save_file({str(block): torch.eye(size) for block in range(blocks)}, folder / "moments.safetensors")
