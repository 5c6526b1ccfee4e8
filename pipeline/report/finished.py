"""A finished run as its folder of reports has it: what it was made with, and the tables that its page is drawn from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError
from pipeline.report.sources import read_layers, read_made, read_regressions
from pipeline.tables import read_record

REWRITE_COLUMNS = ("method", "problem", "layer", "rewrite", "low", "high", "n")
TRACE_COLUMNS = ("module", "window", "line", "layer", "effect", "low", "high", "n")
# Sections of params.yaml that the main path's tables rest on, beside those of the run's methods.
_MAIN = ("seed", "model", "facts", "noise", "trace", "localize", "statistics", "edit", "regressions")
_ROUNDING = ("path", "tf32", "compile")  # what of `compute` they rest on


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run. model: the manifest's; settings: those that its tables rest on, dotted name to JSON text; the tables are
    regressions.csv, layers.csv, rewrite_by_layer.csv and trace_by_layer.csv.
    """

    folder: Path
    model: dict[str, Any]
    settings: dict[str, str]
    versions: dict[str, str]
    confidence: float
    regressions: pd.DataFrame
    choices: pd.DataFrame
    rewrite: pd.DataFrame
    traced: pd.DataFrame

    @property
    def model_name(self) -> str:
        """The model's name without where it comes from."""
        return str(self.model["name"]).removeprefix("packaged:")

    @property
    def blocks(self) -> int:
        """How many blocks the model has."""
        return int(self.model["layers"])


_TABLES: dict[str, Callable[[Path], pd.DataFrame]] = {
    "regressions.csv": read_regressions,
    "layers.csv": read_layers,
    "rewrite_by_layer.csv": partial(read_made, columns=REWRITE_COLUMNS),
    "trace_by_layer.csv": partial(read_made, columns=TRACE_COLUMNS),
}


def read_finished(folder: Path) -> Finished:
    """The run whose reports are in `folder`. UserError where a file is missing, damaged or of another version."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; a folder with a run's reports, such as reports or reports/default-run, is right"
        )
    lacking = [name for name in ("manifest.json", *_TABLES) if not (folder / name).is_file()]
    if lacking:
        raise UserError(
            f"{folder} has no {' and no '.join(lacking)}; a folder with the reports of a whole run of this version is "
            "right, as make repro leaves it in reports"
        )
    path = folder / "manifest.json"
    manifest = read_record(path, model=dict, params=dict, versions=dict)
    try:
        return Finished(
            folder=folder,
            model={key: manifest["model"][key] for key in ("name", "layers", "family", "parameters", "vocabulary")},
            settings=_settings(manifest["params"]),
            versions=manifest["versions"],
            confidence=float(manifest["params"]["regressions"]["confidence"]),
            **{_FIELDS[name]: read(folder / name) for name, read in _TABLES.items()},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: lacks {error}, so another version of this code wrote it; make repro writes it anew"
        ) from None


_FIELDS = dict(zip(_TABLES, ("regressions", "choices", "rewrite", "traced"), strict=True))


def _settings(params: Mapping[str, Any]) -> dict[str, str]:
    """The settings that the tables rest on, dotted name to JSON text."""
    used = {name: params[name] for name in (*_MAIN, *params["edit"]["methods"]) if name in params}
    used["compute"] = {key: params["compute"][key] for key in _ROUNDING if key in params["compute"]}
    return dict(_flat("", used))


def _flat(prefix: str, tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found += _flat(f"{prefix}{key}.", value)
        else:
            found.append((f"{prefix}{key}", json.dumps(value, ensure_ascii=False)))
    return found


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Names with another value in each, in the order of the first, then the second; a dash where there is none."""
    names = dict.fromkeys([*one, *other])
    return [(name, one.get(name, "–"), other.get(name, "–")) for name in names if one.get(name) != other.get(name)]


def labels(one: Finished, other: Finished) -> tuple[str, str]:
    """What to call two runs: by their models, where these differ, else by their folders too."""
    names = one.model_name, other.model_name
    if names[0] != names[1]:
        return names
    folders = one.folder.resolve(), other.folder.resolve()
    short = folders[0].name != folders[1].name
    first, second = (folder.name if short else str(folder) for folder in folders)
    return f"{names[0]} ({first})", f"{names[1]} ({second})"
