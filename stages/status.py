"""What is done, what is left, for how long, in how much space; `--prune` removes what no current setting needs.

    python -m stages.status            make status
    python -m stages.status --prune    make prune

No model is loaded. What the stages `model`, `facts` and `statistics` wrote counts only while it is what params.yaml
asks for; otherwise the steps that build on it wait, and nothing is pruned: it would be a guess what they need. The
time left is an estimate, see `pipeline.status`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import params, status
from pipeline.engine import Unit
from pipeline.errors import UserError
from pipeline.facts import FactFile, choose
from pipeline.params import Params
from pipeline.store import Store
from pipeline.tables import read_record
from pipeline.yaml_errors import read_yaml
from stages import _inputs, _jobs
from stages._run import in_use

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")


def steps(settings: Params, store: Store) -> dict[str, Sequence[Unit] | str]:
    """Units of every step, or "STAGE: why" for what it waits for."""
    file = _jobs.candidates(settings)
    model = _why("model", lambda: _model_fits(settings))
    facts = model or _why("facts", lambda: _facts_fit(settings, file, store))
    moments = facts or _why("statistics", lambda: _statistics_fit(settings))
    found: dict[str, Sequence[Unit] | str] = {
        "known": model or _jobs.known(settings, file).units(),
        "trace": facts or _jobs.trace(settings).units(),
    }
    for method in settings.edit.methods:
        for problem in settings.edit.problems:
            found[f"edit-{method}-{problem}"] = moments or _jobs.edit(settings, method, problem).units()
    return found


def _why(stage: str, unfit: Callable[[], str]) -> str:
    """Why the stage's files are not what the settings ask for; empty where they are."""
    try:
        why = unfit()
    except UserError as error:
        why = str(error)
    return why and f"{stage}: {why}"


def _model_fits(settings: Params) -> str:
    model: dict[str, Any] = _inputs.model(settings)
    for key in ("name", "dtype", "add_bos"):
        if model.get(key) != getattr(settings.model, key):
            return f"data/model.json has {key} {model.get(key)!r}, params.yaml {getattr(settings.model, key)!r}"
    # What model.json doesn't say, such as the revision, DVC has written down where it ran the stage.
    if LOCK.exists():
        try:
            ran = read_yaml(LOCK, 10**7)["stages"]["model"]["params"][str(PARAMS)]
        except (KeyError, TypeError):
            return "dvc.lock does not know this stage"
        now = read_yaml(PARAMS)
        if changed := [key for key in ran if ran[key] != now.get(key)]:
            return f"`{changed[0]}` in params.yaml was changed since it ran"
    return ""


def _facts_fit(settings: Params, file: FactFile, store: Store) -> str:
    """The chosen facts follow from the file and the stored measurements; are they those of data/facts.parquet?"""
    job = _jobs.known(settings, file)
    tables = [store.get_table(job.step, unit.key, unit.label) for unit in job.units()]
    measured = [table for table in tables if table is not None]
    if len(measured) < len(tables):
        return f"{len(tables) - len(measured)} of {len(tables)} {job.noun} are not measured yet"
    chosen = choose(file.facts, job.read(pa.concat_tables(measured)), settings.facts.known, settings.facts.count)
    if _inputs.facts() != tuple(fact for fact, (kept, _) in zip(file.facts, chosen, strict=True) if kept):
        return "data/facts.parquet holds other facts than the settings choose now"
    subjects = read_record(_inputs.DATA / "embedding_sd.json", subjects=int)["subjects"]
    if subjects != len({fact.subject for fact in file.facts}):
        return "data/embedding_sd.json is of other subjects"
    _inputs.sd(settings)
    return ""


def _statistics_fit(settings: Params) -> str:
    _inputs.moments(settings, _inputs.model(settings))
    return ""


def run(settings: Params, prune: bool) -> None:
    """Print the status; or remove, and say how much."""
    store = _inputs.store()
    found = status.survey(store.entries(), steps(settings, store))
    if not prune:
        print(status.render(found))
        return
    if waiting := found.waiting:
        stage, _, why = waiting.waits.partition(": ")
        raise UserError(
            f"nothing is removed, as what {waiting.step} needs is not known before the stage {stage} has run ({why}); "
            "run `dvc repro` first"
        )
    files, size = store.prune(found.needed)
    print(f"removed {status.files(files, size)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stages.status", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prune", action="store_true", help="remove what no current setting needs")
    asked = parser.parse_args(arguments)
    try:
        settings = params.load(PARAMS)
        if not asked.prune:
            run(settings, prune=False)
        else:
            with in_use(alone=True):
                run(settings, prune=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
