"""What several stages read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.facts import Fact, kept_facts
from pipeline.jobs import noise_sd
from pipeline.params import Params, check_against_model
from pipeline.store import Store
from pipeline.tables import read, read_record

DATA = Path("data")


def store() -> Store:
    """The store of finished units."""
    return Store(DATA / "store")


def model(params: Params) -> dict[str, Any]:
    """data/model.json, with the settings checked against the model's depth."""
    described = read_record(DATA / "model.json", name=str, fingerprint=str, layers=int, fast_path=bool)
    check_against_model(params, described["layers"])
    return described


def facts() -> tuple[Fact, ...]:
    """The facts of this run."""
    return tuple(kept_facts(read(DATA / "facts.parquet")))


def sd(params: Params) -> float:
    """The noise's standard deviation in embedding units."""
    return noise_sd(params, read_record(DATA / "embedding_sd.json", embedding_sd=(int, float))["embedding_sd"])
