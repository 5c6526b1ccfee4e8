"""The files that the report is made from, read and checked: the published table, and what earlier stages wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.analysis.agreement import AGREEMENT_COLUMNS, LOCALIZERS
from pipeline.analysis.fractional import FRACTIONAL_COLUMNS
from pipeline.analysis.layers import LAYER_COLUMNS
from pipeline.analysis.regression import REGRESSION_COLUMNS
from pipeline.errors import UserError
from pipeline.report.manifest import read_timings
from pipeline.tables import FACTS, LEFT_OUT, SCORES, TRACE, read, read_edits, read_record

PAPER_COLUMNS = (
    "score",
    "problem",
    "method",
    "r2_layer",
    "r2_trace",
    "r2_both",
    "r2_diff",
    "p_value",
    "note",
)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """All that the page is made from, as earlier stages left it. Names are those of the files."""

    facts: pd.DataFrame
    trace: pd.DataFrame
    scores: pd.DataFrame
    edits: pd.DataFrame
    regressions: pd.DataFrame
    fractional: pd.DataFrame
    choices: pd.DataFrame
    agreement: pd.DataFrame
    localizers: pd.DataFrame
    paper: pd.DataFrame
    left_out: pd.DataFrame
    model: dict[str, Any]
    statistics: dict[str, Any]
    timings: list[dict[str, Any]]


def read_all(reports: Path, data: Path, methods: Sequence[str], problems: Sequence[str]) -> Sources:
    """The files of the folders reports/ and data/; edits of these methods and problems. Raises UserError."""
    return Sources(
        regressions=read_regressions(reports / "regressions.csv"),
        fractional=read_made(reports / "fractional.csv", FRACTIONAL_COLUMNS, dtype={"note": str}).fillna({"note": ""}),
        choices=read_layers(reports / "layers.csv"),
        agreement=read_localizers(reports / "localizers.csv"),
        paper=read_paper(data / "paper" / "hase2023_r2.csv"),
        left_out=read_left_out(data / "left_out.csv"),
        facts=read(data / "facts.parquet", FACTS),
        trace=read(data / "trace.parquet", TRACE),
        localizers=read(data / "localizers.parquet", LOCALIZERS),
        scores=read(data / "scores.parquet", SCORES),
        edits=read_edits(data / "edits", methods, problems),
        model=read_record(data / "model.json", name=str, fingerprint=str),
        statistics=read_record(data / "statistics" / "manifest.json"),
        timings=read_timings(data / "timings"),
    )


def read_paper(path: Path) -> pd.DataFrame:
    """The published R² table, one row per score, problem and method; `p_value` and `note` as text.

    Raises UserError where the file is missing or lacks a column.
    """
    try:
        paper = pd.read_csv(path, dtype={"p_value": "str", "note": "str"})
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it is committed, so check it out again") from None
    lacking = [column for column in PAPER_COLUMNS if column not in paper]
    if lacking:
        raise UserError(f"{path}: has no column {lacking[0]} but must have {', '.join(PAPER_COLUMNS)}")
    return paper


def read_regressions(path: Path) -> pd.DataFrame:
    """reports/regressions.csv. Raises UserError where it is missing, no CSV or lacks a column."""
    return read_made(path, REGRESSION_COLUMNS)


def read_layers(path: Path) -> pd.DataFrame:
    """reports/layers.csv. Raises UserError where it is missing, no CSV or lacks a column."""
    return read_made(path, LAYER_COLUMNS)


def read_localizers(path: Path) -> pd.DataFrame:
    """reports/localizers.csv. Raises UserError where it is missing, no CSV or lacks a column."""
    return read_made(path, AGREEMENT_COLUMNS)


def read_left_out(path: Path) -> pd.DataFrame:
    """data/left_out.csv, a row a record, as text. Raises UserError where it is missing, no CSV or lacks a column."""
    return read_made(path, LEFT_OUT, dtype=str, keep_default_na=False)


def read_made(path: Path, columns: Sequence[str], *, command: str = "dvc repro", **how: Any) -> pd.DataFrame:
    """A CSV table that `command` makes. Raises UserError where it is missing, no CSV or lacks a column."""
    try:
        table = pd.read_csv(path, **how)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run {command}, which makes it") from None
    except (OSError, ValueError) as error:  # pandas' own errors are among these
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is not a CSV table ({told}); delete it and run {command} again") from None
    lacking = [column for column in columns if column not in table]
    if lacking:
        raise UserError(f"{path}: has no column {lacking[0]}; delete it and run {command} again")
    return table
