"""The report: one HTML page that works offline, and the metrics for DVC.

Every sentence with a result is put together from the tables, so that another run's report says what that run
found. All text goes through Jinja's autoescape; figures are inlined as data URIs; the page loads nothing and
runs no script.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.analysis.regression import REGRESSION_COLUMNS, chance_r2_diff
from pipeline.errors import UserError
from pipeline.report.plots import facts_phrase, words

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

_VARIANT = ["method", "trace_module", "trace_window", "trace_measure"]
_R2 = ("r2_layer", "r2_trace", "r2_both", "r2_diff")
_SVG_LIMIT = 1_000_000  # bytes; a figure of more points than this is lighter as pixels


class Picture(NamedTuple):
    """A saved figure: title and caption as plain text, and its two files."""

    title: str
    caption: str
    svg: Path
    png: Path


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
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run dvc repro, which makes it") from None
    except (OSError, ValueError) as error:  # pandas' own errors are among these
        told = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is not a CSV table ({told}); delete it and run dvc repro again") from None
    lacking = [column for column in REGRESSION_COLUMNS if column not in table]
    if lacking:
        raise UserError(f"{path}: has no column {lacking[0]}; delete it and run dvc repro again")
    return table


def headline(regressions: pd.DataFrame) -> pd.DataFrame:
    """The regressions that the answer rests on: first method and trace variant, rewrite score if there is
    one."""
    first = regressions.iloc[0]
    score = "rewrite" if (regressions["score"] == "rewrite").any() else first["score"]
    rows = regressions[(regressions[_VARIANT] == first[_VARIANT]).all(axis=1)]
    return rows[rows["score"] == score]


def answer(regressions: pd.DataFrame, model_name: str, confidence: float) -> str:
    """What this run answers to "does localization inform editing?", in sentences made of its numbers."""
    rows = headline(regressions)
    defined = rows.dropna(subset=["r2_layer", "r2_diff", "r2_diff_low"])
    method, score = str(rows["method"].iloc[0]).upper(), words(str(rows["score"].iloc[0]))
    if defined.empty:
        most = facts_phrase(int(rows["n_facts"].max()))
        return (
            f"This run cannot answer the question: with {most}, or scores or layers that do not vary, "
            f"no regression of the {score} score is defined."
        )
    problems = _listed([words(problem) for problem in defined["problem"]])
    chance = [chance_r2_diff(row.r2_layer, row.n_facts) for row in defined.itertuples()]
    counts = _range(defined["n_facts"], "{:.0f}")
    start = (
        f"In {model_name}, edited with {method} on {counts} facts, the edited layer alone explains "
        f"{_range(defined['r2_layer'] * 100, '{:.0f}')}% of the variance of the {score} score ({problems}). "
        f"Knowing each fact's tracing effect as well adds {_range(defined['r2_diff'] * 100, '{:.1f}')} "
        "points, where a trace dealt to facts at random would add "
        f"{_range(pd.Series(chance) * 100, '{:.1f}')}."
    )
    above = defined[defined["r2_diff_low"] > 0]
    interval = f"The {confidence:.0%} interval of that addition"
    if above.empty:
        where = "" if len(defined) == 1 else f" for each of the {len(defined)} problems"
        most = defined["r2_diff_high"].max() * 100
        return (
            f"{start} {interval} includes 0{where}: these facts give no sign that localization says where to "
            f"edit, though they do not rule out an addition of up to {most:.1f} points."
        )
    found = _listed(
        [f"{words(row.problem)} (at least {row.r2_diff_low * 100:.1f} points)" for row in above.itertuples()]
    )
    rest = [words(problem) for problem in defined.loc[defined["r2_diff_low"] <= 0, "problem"]]
    others = f", and includes 0 for {_listed(rest)}" if rest else ""
    return (
        f"{start} {interval} excludes 0 for {found}{others}. "
        "Where it excludes 0, localization says something about where to edit."
    )


def metrics(
    regressions: pd.DataFrame, scores: pd.DataFrame, facts: pd.DataFrame, edit_counts: pd.DataFrame
) -> dict[str, Any]:
    """Numbers for reports/metrics.json, nested by method and problem; undefined ones are left out.

    R² of the headline regressions, and of the mean rewrite score over facts its best layer (counted from 0),
    the value there, and its mean over layers. `edit_counts` comes from `pipeline.analysis.scores.count_edits`.
    """
    scored = int(edit_counts.loc[edit_counts["reason"] == "", "edits"].sum())
    result: dict[str, Any] = {
        "facts": {"candidates": len(facts), "used": int(facts["kept"].sum())},
        "edits": {"scored": scored, "left_out": int(edit_counts["edits"].sum()) - scored},
    }
    once = scores.drop_duplicates(["method", "problem", "fact_id", "window", "layer"])
    for (method, problem), group in once.groupby(["method", "problem"], sort=False):
        by_layer = group.groupby("layer")["rewrite"].mean().dropna()
        if len(by_layer):
            numbers = {"best": by_layer.max(), "best_layer": by_layer.idxmax(), "mean": by_layer.mean()}
            result.setdefault(str(method), {})[str(problem)] = {"rewrite": _numbers(numbers)}
    for row in headline(regressions).to_dict("records"):
        of_problem = result.setdefault(str(row["method"]), {}).setdefault(str(row["problem"]), {})
        of_problem[f"{row['score']}_r2"] = _numbers(
            {name.removeprefix("r2_"): row[name] for name in (*_R2, "r2_diff_low", "r2_diff_high", "n_facts")}
        )
    return result


def render(
    *,
    title: str,
    regressions: pd.DataFrame,
    paper: pd.DataFrame,
    facts: pd.DataFrame,
    edit_counts: pd.DataFrame,
    targets: pd.DataFrame,
    pictures: Sequence[Picture],
    run: Mapping[str, Any],
    model_name: str,
    n_layers: int,
    confidence: float,
    samples: int,
) -> str:
    """The whole page as text.

    Parameters: regressions.csv's table, the published table (`read_paper`), facts.parquet, the counts of
    `pipeline.analysis.scores.count_edits`, saved figures in their order, the manifest, the model's name and number of
    blocks, the intervals' confidence and the number of bootstrap resamples.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"r2": _r2, "p": _p, "words": words}
    kept = facts[facts["kept"]]
    reasons = facts.loc[~facts["kept"], "drop_reason"].fillna("no reason given").value_counts()
    tables = r2_tables(regressions, paper)
    return environment.get_template("page.html.j2").render(
        title=title,
        answer=answer(regressions, model_name, confidence),
        first_table=tables[0],
        more_tables=tables[1:],
        pictures=[picture._asdict() | {"uri": _data_uri(picture)} for picture in pictures],
        n_facts=int(headline(regressions)["n_facts"].max()),
        n_layers=n_layers,
        n_tests=len(regressions),
        confidence=f"{confidence:.0%}",
        samples=samples,
        n_candidates=len(facts),
        reasons=list(reasons.items()),
        used=[_fact_row(row) for row in kept.to_dict("records")],
        edits=edit_counts.to_dict("records"),
        target_sentence=target_sentence(targets),
        run=list(_flat(run)),
    )


def target_sentence(targets: pd.DataFrame) -> str:
    """How many targets of tracing reversal are function words, from `pipeline.analysis.targets`; "" without it."""
    rows = targets[(targets["problem"] == "tracing_reversal") & (targets["facts"] > 0)].to_dict("records")
    if not rows:
        return ""
    row = rows[0]
    which = f" ({row['examples']})" if row["function_words"] else ""
    return (
        f"The target of tracing reversal, what the model says under noise, is a function word{which} for "
        f"{row['function_words']} of {facts_phrase(row['facts'])}, a share of {row['share']:.0%}; the published "
        "code passes over no word."
    )


def r2_tables(regressions: pd.DataFrame, paper: pd.DataFrame) -> list[dict[str, Any]]:
    """The R² tables of the page, the headline's first: name, rows (ours, chance, the paper's row or None),
    notes."""
    first = headline(regressions).iloc[0]
    groups = list(regressions.groupby([*_VARIANT, "score"], sort=False))
    # A stable sort: only the headline's table moves, to the front.
    groups.sort(key=lambda item: item[0] != tuple(first[[*_VARIANT, "score"]]))
    published = {
        (row["method"].lower(), row["score"], row["problem"]): row
        for row in paper.astype(object).where(paper.notna(), None).to_dict("records")
    }
    tables = []
    for (method, module, window, measure, score), group in groups:
        rows, notes = [], []
        for ours in group.to_dict("records"):
            theirs = published.get((str(method).lower(), score, ours["problem"]))
            if theirs is not None and theirs["note"]:
                notes.append(f"{words(ours['problem'])}: {theirs['note']}")
            chance = chance_r2_diff(ours["r2_layer"], ours["n_facts"])
            rows.append({"ours": ours, "chance": chance, "paper": theirs})
        variant = f"{words(measure)}, {module}, window {window}"
        name = f"{words(score).capitalize()} score, {str(method).upper()}; trace: {variant}"
        tables.append({"name": name, "rows": rows, "notes": notes, "paper": any(row["paper"] for row in rows)})
    return tables


def _fact_row(row: Mapping[str, Any]) -> dict[str, Any]:
    text = str(row["prompt"]).replace("{}", str(row["subject"]))
    keys = ("fact_id", "relation", "target_true", "target_false", "p_true")
    return {key: row[key] for key in keys} | {"text": text}


def _data_uri(picture: Picture) -> str:
    path, kind = picture.svg, "svg+xml"
    if path.stat().st_size > _SVG_LIMIT:
        path, kind = picture.png, "png"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Leaves of nested mappings as (dotted name, text); a list is one leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", f"{value:.6g}"
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _numbers(values: Mapping[str, Any]) -> dict[str, float | int]:
    """Plain numbers for JSON; NaN left out, floats at ten significant digits."""
    return {
        name: int(value) if isinstance(value, Integral) else float(f"{value:.10g}")
        for name, value in values.items()
        if not math.isnan(value)
    }


def _r2(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _p(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "<1e-4" if value < 1e-4 else f"{value:.4f}"


def _range(values: "pd.Series[float]", form: str) -> str:
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
