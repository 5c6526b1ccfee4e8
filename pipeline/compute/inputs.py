"""What several stages read, checked: it may be missing, damaged, of other settings or of another version."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.compute import engine
from pipeline.compute.keys import versions
from pipeline.compute.store import Store
from pipeline.compute.work import Job
from pipeline.disk import digest
from pipeline.errors import UserError
from pipeline.facts.choose import kept_facts, known_facts, of_relations, trim
from pipeline.facts.download import fetched, located
from pipeline.facts.fact import Fact, FactFile
from pipeline.facts.readers import read_fact_file
from pipeline.facts.reading import check_share
from pipeline.lm.folders import fingerprint
from pipeline.settings.params import MAIN, Params, check_against_model
from pipeline.tables import FACTS, read, read_record, write_json

DATA = Path("data")
STATISTICS = DATA / "statistics"
MEASURES = DATA / "measures"  # of the stages of measures/dvc.yaml
BEGUN = MEASURES / "begun"


def store(params: Params) -> Store:
    """The store of finished units."""
    return Store(params.compute.store)


def model(params: Params, *beside: str) -> dict[str, Any]:
    """data/model.json, with the settings checked against the model's depth: those of the main path, and of the sections
    `beside` it that the caller runs.
    """
    path = DATA / "model.json"
    described = read_record(path, name=str, source=str, fingerprint=str, layers=int, key_size=int, fast_path=bool)
    for key, least in (("layers", 1), ("key_size", 0)):  # experts have no one size of keys: 0
        if described[key] < least:
            raise UserError(
                f"{path}: {key} is {described[key]} but must be at least {least}; delete it and run dvc repro"
            )
    check_against_model(params, described["layers"], (*MAIN, *beside))
    return described


def facts() -> tuple[Fact, ...]:
    """The facts of this run."""
    return _facts(kept_facts)


def known() -> tuple[Fact, ...]:
    """All facts that the model knows, this run's first."""
    return _facts(known_facts)


def _facts(choice: Callable[[pd.DataFrame], list[Fact]]) -> tuple[Fact, ...]:
    path = DATA / "facts.parquet"
    try:
        return tuple(choice(read(path, FACTS)))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def sd(params: Params) -> float:
    """The noise's standard deviation in embedding units."""
    path = DATA / "embedding_sd.json"
    found = read_record(path, embedding_sd=(int, float))["embedding_sd"]
    if not (math.isfinite(found) and found > 0):
        raise UserError(f"{path}: embedding_sd is {found} but must be a number above 0; delete it and run dvc repro")
    return params.noise.in_embedding_units(found)


def window() -> int:
    """How many blocks an edit changes at the most, as stage `params` found it."""
    path = DATA / "inputs" / "moments.json"
    width: int = read_record(path, window=int)["window"]
    if width < 1:
        raise UserError(f"{path}: window is {width} but must be at least 1; delete it and run dvc repro")
    return width


def candidates(params: Params) -> FactFile:
    """The facts of the fact file that this run may choose from, and the records left out.

    UserError where too large a share of the whole file is broken.
    """
    settings = params.facts
    path = located(settings.source, settings.path)
    whole = read_fact_file(settings.source, path, params.seed, settings.records)
    check_share(path, whole, settings.max_left_out_share)
    file = of_relations(whole, settings.relations)
    return FactFile(trim(file.facts, settings.max_paraphrases, settings.max_neighborhood), file.left_out)


def surroundings(params: Params, window: int) -> dict[str, dict[str, Any]]:
    """What stages depend on beside settings and the files of other stages, for DVC to compare.

    facts: SHA-256 of the file or folder that the facts are read from, fetched first where `facts.path` is `download`;
    text: SHA-256 of the file for the second moments; model: a hash of the model's folder; null where none is named or
    none is there. libraries: the versions that are in every unit's key. moments: the `window` of blocks that an edit
    changes at the most, so that a method of wider windows gets the second moments it needs. table: the sections of the
    methods that `table` names, and SHA-256 of the file with its reference texts. scaling: the sections of those that
    `scaling` names. measures: of the records that the stages of measures/dvc.yaml left, by name, SHA-256 and whether
    they are of the settings of today.
    """
    text, name = params.statistics.text_file, Path(params.model.name).expanduser()
    snippets = None if params.table.snippets is None else Path(params.table.snippets)
    return {
        "facts": {"sha256": _content(fetched(params.facts.source, params.facts.path))},
        "text": {"sha256": digest(text) if text is not None and text.is_file() else None},
        "model": {"fingerprint": fingerprint(name) if name.is_dir() else None},
        "libraries": versions(),
        "moments": {"window": window},
        "table": {
            "methods": {name: params.sections[name] for name in params.table.methods if name in params.sections},
            "snippets": digest(snippets) if snippets is not None and snippets.is_file() else None,
        },
        "scaling": {name: params.sections[name] for name in params.scaling.methods if name in params.sections},
        "measures": {
            name: {"sha256": digest(path), "fits": fits(params, name, record)} for name, path, record in measured()
        },
    }


def _content(path: Path) -> str | None:
    """SHA-256 of a file, or of the names and contents of a folder's tables; None where there is none to be read."""
    try:
        if not path.is_dir():
            return digest(path)
        listed = "".join(f"{table.name}\0{digest(table)}\0" for table in sorted(path.glob("*.tsv")))
    except OSError:  # stage `facts` says what is wrong
        return None
    return hashlib.sha256(listed.encode()).hexdigest()


def record_measure(params: Params, section: str, *made: Path) -> None:
    """Write down what the tables `made` of a stage of measures/dvc.yaml were made of; they are there by then.

    made_of: settings; model: its fingerprint; tables: their SHA-256; units: step and key of the units of this process.
    """
    record = {
        "made_of": params.identity(section),
        "model": model(params)["fingerprint"],
        "tables": {str(path): digest(path) for path in made},
        "units": sorted(engine.USED),
    }
    write_json(record, MEASURES / f"{section}.json")
    (BEGUN / f"{section}.json").unlink(missing_ok=True)


def record_begun(params: Params, section: str, *jobs: Job) -> None:
    """Write down that a stage of measures/dvc.yaml needs the units of `jobs`, before it computes them.

    So they are kept where it is stopped. For jobs that can be known only from what was computed before.
    """
    units = {(job.step, unit.key) for job in jobs for unit in job.units()}
    made_of, fingerprint_ = params.identity(section), model(params)["fingerprint"]
    BEGUN.mkdir(parents=True, exist_ok=True)
    record = {"made_of": made_of, "model": fingerprint_, "tables": {}, "units": sorted(units | engine.USED)}
    write_json(record, BEGUN / f"{section}.json")


def measured() -> list[tuple[str, Path, dict[str, Any]]]:
    """Name, path and content of the records that `record_measure` wrote, by name. Raises UserError."""
    return _records(MEASURES)


def begun() -> list[tuple[str, Path, dict[str, Any]]]:
    """The same of `record_begun`, for stages that have not come to their end since."""
    return _records(BEGUN)


def _records(folder: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    kinds: dict[str, Any] = {"made_of": dict, "model": str, "tables": dict, "units": list}
    return [(path.stem, path, read_record(path, **kinds)) for path in sorted(folder.glob("*.json"))]


def fits(params: Params, section: str, record: Mapping[str, Any]) -> bool:
    """Whether a record of `measured` is of these settings. params: with the sections of methods."""
    now = json.loads(json.dumps(params.identity(section)))  # as JSON gives it back
    return section in Params.model_fields and bool(record["made_of"] == now)
