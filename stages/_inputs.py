"""What several stages read, checked: it may be missing, damaged, of other settings or of another version."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipeline import statistics
from pipeline.errors import UserError
from pipeline.facts import Fact, kept_facts
from pipeline.jobs import noise_sd
from pipeline.params import Params, check_against_model
from pipeline.store import Store
from pipeline.tables import FACTS, read, read_record

DATA = Path("data")


def store() -> Store:
    """The store of finished units."""
    return Store(DATA / "store")


def model(params: Params) -> dict[str, Any]:
    """data/model.json, with the settings checked against the model's depth."""
    path = DATA / "model.json"
    described = read_record(path, name=str, fingerprint=str, layers=int, key_size=int, fast_path=bool)
    for key in ("layers", "key_size"):
        if described[key] < 1:
            raise UserError(f"{path}: {key} is {described[key]} but must be at least 1; delete it and run dvc repro")
    check_against_model(params, described["layers"])
    return described


def facts() -> tuple[Fact, ...]:
    """The facts of this run."""
    path = DATA / "facts.parquet"
    try:
        return tuple(kept_facts(read(path, FACTS)))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def sd(params: Params) -> float:
    """The noise's standard deviation in embedding units."""
    path = DATA / "embedding_sd.json"
    found = read_record(path, embedding_sd=(int, float))["embedding_sd"]
    if not (math.isfinite(found) and found > 0):
        raise UserError(f"{path}: embedding_sd is {found} but must be a number above 0; delete it and run dvc repro")
    return noise_sd(params, found)


def moments(params: Params, model: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], Path]:
    """(manifest, context prefixes, folder) of data/statistics, which must be of these settings and this model."""
    folder = DATA / "statistics"
    manifest, prefixes = statistics.read(folder)
    if manifest["key"] != statistics.key(params, model):
        raise UserError(f"{folder} is of other settings, another model or another version; run `dvc repro statistics`")
    statistics.check_moments(folder, params.edit.layer_list(model["layers"]), model["key_size"])
    return manifest, prefixes, folder
