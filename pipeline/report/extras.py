"""The page's sections on tables that the stages of measures/dvc.yaml make: shown where a table is there and of this
run, and otherwise named with the command that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.report import aie, counterfact, essence, override, robustness, scaling
from pipeline.report.section import Section, record
from pipeline.tables import TEXT, WHOLE, read, read_record

# Of data/table_texts.parquet, what the fact explorer shows: what the model writes before and after an edit.
TEXTS = {"fact_id": TEXT, "method": TEXT, "layer": WHOLE, "prompt": TEXT, "before": TEXT, "after": TEXT}


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A section that not every run has.

    name: of the stage, of its section in params.yaml and of `make`'s target. says: what it would show, as the end of
    "`make NAME`: ...". draw: the section, from the folders reports/ and data/ and the intervals' confidence.
    """

    name: str
    says: str
    draw: Callable[[Path, Path, float], Section]


EXTRAS: tuple[Extra, ...] = (
    Extra(
        name="essence",
        says="what edits leave of what the model has to say of a subject, by layer",
        draw=essence.section,
    ),
    Extra(
        name="table",
        says="CounterFact's table, each method beside the unedited model and the papers, and what an edit sounds like",
        draw=counterfact.section,
    ),
    Extra(
        name="maps",
        says="average indirect effects; what is left of them without MLPs or attention",
        draw=aie.section,
    ),
    Extra(
        name="scaling",
        says="S, ES, PS, NS and GE of many edits made at once by several methods, by relation and of two relations "
        "mixed, and MEMIT by the number and place of the blocks that share an edit",
        draw=scaling.draw,
    ),
    Extra(
        name="robustness",
        says="whether other traces, corruptions, metrics, measures and choices of facts change the conclusion",
        draw=robustness.section,
    ),
    Extra(
        name="override",
        says="where the traces of edited models peak, and whether an edit outlives the MLP outputs at the traced block",
        draw=override.section,
    ),
)


def sections(
    reports: Path,
    data: Path,
    fits: Mapping[str, Mapping[str, Any]],
    model: str,
    confidence: float,
    extras: tuple[Extra, ...] = EXTRAS,
) -> list[Section]:
    """The sections that can be shown, and one on those that can't.

    fits: data/inputs/measures.json, which says of each record whether it is of today's settings; model: the model's
    fingerprint. A table of other settings or of another model is another run's, and is not shown. Raises UserError
    where a file is damaged.
    """
    found, missing = [], []
    for extra in extras:
        if _of_this_run(data, extra.name, fits, model):
            found.append(extra.draw(reports, data, confidence))
        elif record(data, extra.name).exists():
            missing.append(f"make {extra.name}: {extra.says}. What is there was made with other settings.")
        else:
            missing.append(f"make {extra.name}: {extra.says}.")
    if missing:
        found.append(Section(anchor="more", title="What else can be measured", paragraphs=missing))
    return found


def shown(data: Path, fits: Mapping[str, Mapping[str, Any]], model: str) -> list[str]:
    """Names of the stages whose tables are there and of this run; as for `sections`."""
    return [extra.name for extra in EXTRAS if _of_this_run(data, extra.name, fits, model)]


def texts(data: Path, fits: Mapping[str, Mapping[str, Any]], model: str) -> pd.DataFrame | None:
    """What stage `table` had the model write; None where it is not there or another run's. As for `sections`."""
    return read(data / "table_texts.parquet", TEXTS) if _of_this_run(data, "table", fits, model) else None


def _of_this_run(data: Path, name: str, fits: Mapping[str, Mapping[str, Any]], model: str) -> bool:
    """Whether a stage's tables are there, of today's settings and of this model."""
    path = record(data, name)
    if not path.exists() or not fits.get(name, {}).get("fits"):
        return False
    return bool(read_record(path, model=str)["model"] == model)
