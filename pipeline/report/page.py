"""The report: one HTML page that works offline, and the metrics for DVC.

Every sentence with a result is put together from the tables, so that another run's report says what that run
found. All text goes through Jinja's autoescape; figures are inlined as data URIs; the page loads nothing and
runs only the scripts of pipeline.report.scripts.
"""

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.analysis.trust import MIN_FACTS_SHOWN, shown, withheld
from pipeline.report.explorer import Explorer
from pipeline.report.plots import PAPER_SCORES, Plot, facts_phrase, listed, words
from pipeline.report.scripts import licences, policy, scripts
from pipeline.report.section import Section
from pipeline.report.sources import Sources
from pipeline.words import method_label

SECTIONS = ("layers", "methods", "collapse")  # put together by layers.py, comparison.py and collapse.py

_COMMONEST = 3  # reasons that the sentence about records left out names

_VARIANT = ["method", "trace_module", "trace_window", "trace_measure"]
_METRICS = (
    "r2_layer", "r2_trace", "r2_both", "r2_diff", "chance", "gain", "gain_low", "gain_high", "gain_bound",
    "permutation_pvalue", "within_slope", "within_pvalue", "cv_gain", "n_facts",
)  # fmt: skip
_SVG_LIMIT = 1_000_000  # bytes; a figure of more points than this is lighter as pixels


class Picture(NamedTuple):
    """A saved figure: title and caption as plain text, and its two files."""

    title: str
    caption: str
    svg: Path
    png: Path


def save(plots: Iterable[Plot | None], folder: Path, dpi: int) -> list[Picture]:
    """Save what was drawn in `folder`, and take away what earlier runs drew there and this one did not."""
    pictures = [Picture(plot.title, plot.caption, *plot.save(folder, dpi)) for plot in plots if plot is not None]
    kept = {path for picture in pictures for path in (picture.svg, picture.png)}
    for path in [*folder.glob("*.svg"), *folder.glob("*.png")]:
        if path not in kept:
            path.unlink()
    return pictures


def headline(regressions: pd.DataFrame) -> pd.DataFrame:
    """The regressions that the answer rests on: first method and trace variant, rewrite score if there is
    one."""
    first = regressions.iloc[0]
    score = "rewrite" if (regressions["score"] == "rewrite").any() else first["score"]
    rows = regressions[(regressions[_VARIANT] == first[_VARIANT]).all(axis=1)]
    return rows[rows["score"] == score]


def answer(regressions: pd.DataFrame, model_name: str, confidence: float) -> str:
    """What this run answers to "does localization inform editing?", in sentences made of its numbers.

    Found is what a test corrected by Holm over the whole table rejects; nothing is said by a number that is withheld.
    """
    rows = headline(regressions)
    defined = rows.dropna(subset=["r2_layer", "r2_diff", "chance"])
    method, score = method_label(str(rows["method"].iloc[0])), words(str(rows["score"].iloc[0]))
    if defined.empty:
        most = facts_phrase(int(rows["n_facts"].max()))
        return (
            f"This run cannot answer the question: with {most}, or scores or layers that do not vary, "
            f"no regression of the {score} score is defined."
        )
    problems = listed([words(problem) for problem in defined["problem"]])
    start = (
        f"In {model_name}, edited with {method} on {_range(defined['n_facts'], '{:.0f}')} facts, the edited layer "
        f"alone explains {_range(defined['r2_layer'] * 100, '{:.0f}')}% of the variance of the {score} score "
        f"({problems}). "
        f"Knowing each fact's tracing effect as well adds {_range(defined['r2_diff'] * 100, '{:.1f}')} "
        "points, where a trace dealt to facts at random would add "
        f"{_range(defined['chance'] * 100, '{:.1f}')}."
    )
    printed = pd.DataFrame([shown(row) for row in defined.to_dict("records")])
    sentences = [_said_of_facts(printed, 1 - confidence), _said_of_layers(printed, 1 - confidence)]
    bounds = printed["gain_bound"].dropna().astype(float)
    if len(bounds):
        sentences.append(
            "For facts of these relations, a gain over chance above "
            f"{_range(bounds.clip(lower=0) * 100, '{:.1f}')} points is ruled out at {confidence:.0%}."
        )
    told = [sentence for sentence in sentences if sentence]
    if not told:
        return f"{start} With fewer than {MIN_FACTS_SHOWN} facts, or none alike in relation, this decides nothing."
    return " ".join([start, *told])


def _said_of_facts(printed: pd.DataFrame, level: float) -> str:
    """Whether the trace of a fact goes with its scores at all, among facts of one relation; "" where untested."""
    tested = printed.dropna(subset=["permutation_holm"])
    if tested.empty:
        return ""
    found = tested[tested["permutation_holm"].astype(float) <= level]
    if found.empty:
        least = tested["permutation_holm"].astype(float).min()
        return (
            "Among facts of one relation, that is not shown to be more than chance for any problem (smallest "
            f"corrected p {least:.2g}), which is no proof that it is chance."
        )
    names = listed([words(problem) for problem in found["problem"]])
    return f"Among facts of one relation, that is more than chance for {names}; this may be that some facts are easier."


def _said_of_layers(printed: pd.DataFrame, level: float) -> str:
    """Whether a fact edits better at the layers where it traces higher; "" where untested."""
    tested = printed.dropna(subset=["within_holm"])
    if tested.empty:
        return ""
    found = tested[tested["within_holm"].astype(float) <= level]
    if found.empty:
        return "Within a fact, edits are not shown to go better, or worse, at the layers where it traces higher."
    parts = []
    for word, group in (("better", found[found["within_slope"] > 0]), ("worse", found[found["within_slope"] <= 0])):
        if len(group):
            parts.append(f"{word} for {listed([words(problem) for problem in group['problem']])}")
    told = " and ".join(parts)
    return f"Within a fact, edits go, at the layers where it traces higher than its relation does, {told}."


def metrics(
    regressions: pd.DataFrame,
    scores: pd.DataFrame,
    facts: pd.DataFrame,
    edit_counts: pd.DataFrame,
    targets: pd.DataFrame,
) -> dict[str, Any]:
    """Numbers for reports/metrics.json, nested by method and problem; undefined ones are left out.

    R² of the headline regressions, and of the mean rewrite score over facts its best layer (counted from 0),
    the value there, and its mean over layers; of targets the share that are function words. `edit_counts` comes from
    `pipeline.analysis.scores.count_edits`, `targets` from `pipeline.analysis.targets`.
    """
    once = scores.drop_duplicates(["method", "problem", "fact_id", "window", "layer"])
    scored = int(edit_counts.loc[edit_counts["reason"] == "", "edits"].sum())
    result: dict[str, Any] = {
        "facts": {"candidates": len(facts), "used": int(facts["kept"].sum())},
        "edits": _numbers(
            {
                "scored": scored,
                "left_out": int(edit_counts["edits"].sum()) - scored,
                "collapsed": once["collapsed"].sum() if once["text_loss_post"].notna().any() else math.nan,
            }
        ),
        "function_word_targets": _numbers(dict(zip(targets["problem"], targets["share"], strict=True))),
    }
    for (method, problem), group in once.groupby(["method", "problem"], sort=False):
        by_layer = group.groupby("layer")["rewrite"].mean().dropna()
        if len(by_layer):
            numbers = {"best": by_layer.max(), "best_layer": by_layer.idxmax(), "mean": by_layer.mean()}
            result.setdefault(str(method), {})[str(problem)] = {"rewrite": _numbers(numbers)}
    for row in headline(regressions).to_dict("records"):
        of_problem = result.setdefault(str(row["method"]), {}).setdefault(str(row["problem"]), {})
        of_problem[f"{row['score']}_r2"] = _numbers({name.removeprefix("r2_"): row[name] for name in _METRICS})
    return result


def render(
    run: Sources,
    *,
    title: str,
    edit_counts: pd.DataFrame,
    targets: pd.DataFrame,
    sections: Mapping[str, Mapping[str, Any]],
    more: Sequence[Section],
    explorer: Explorer,
    pictures: Sequence[Picture],
    manifest: Mapping[str, Any],
    confidence: float,
    permutations: int,
) -> str:
    """The whole page as text.

    Parameters: what earlier stages left, the heading, the counts of `pipeline.analysis.scores.count_edits`, the shares
    of `pipeline.analysis.targets`, what `section` of each of SECTIONS' files says, the sections of
    `pipeline.report.extras`, what `pipeline.report.explorer` packed, the saved figures, in their order and theirs among
    them, the manifest, the intervals' confidence and the number of dealings of traces.
    """
    facts, regressions, name = run.facts, run.regressions, run.model["name"].removeprefix("packaged:")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"r2": _r2, "p": _p, "small": _small, "words": words, "method": method_label}
    kept = facts[facts["kept"]]
    reasons = facts.loc[~facts["kept"], "drop_reason"].fillna("no reason given").value_counts()
    tables = r2_tables(regressions, run.paper)
    drawn = [picture._asdict() | {"uri": _data_uri(picture), "name": picture.svg.stem} for picture in pictures]
    code = scripts()
    own, by_name = {plot.name for part in more for plot in part.plots}, {picture["name"]: picture for picture in drawn}
    return environment.get_template("page.html.j2").render(
        title=title,
        policy=policy(code),
        scripts=code,
        licences=licences(),
        explorer=explorer,
        answer=" ".join(filter(None, [sections["layers"]["first"], answer(regressions, name, confidence)])),
        first_table=tables[0],
        more_tables=tables[1:],
        pictures=[picture for picture in drawn if picture["name"] not in own],
        more=[(section, [by_name[plot.name] for plot in section.plots]) for section in more],
        n_facts=int(headline(regressions)["n_facts"].max()),
        n_layers=run.scores["layer"].nunique(),
        n_regressions=len(regressions),
        n_tests=int(regressions["permutation_pvalue"].notna().sum()),
        n_slopes=int(regressions["within_pvalue"].notna().sum()),
        reasons_withheld=_withheld(regressions),
        confidence=f"{confidence:.0%}",
        permutations=permutations,
        n_candidates=len(facts),
        reasons=list(reasons.items()),
        used=[_fact_row(row) for row in kept.to_dict("records")],
        edits=edit_counts.to_dict("records"),
        target_sentence=target_sentence(targets),
        left_out_sentence=left_out_sentence(run.left_out),
        **{name: sections[name] for name in SECTIONS},
        run=list(_flat(manifest)),
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


def left_out_sentence(left_out: pd.DataFrame) -> str:
    """How many records of the fact file were not used, and why, from `pipeline.report.sources`; "" where all were."""
    if left_out.empty:
        return ""
    n, counts = len(left_out), Counter(left_out["reason"])
    reasons = "; ".join(f"{reason} ({count})" for reason, count in counts.most_common(_COMMONEST))
    why = "the commonest reasons" if len(counts) > _COMMONEST else "the reasons"
    return (
        f"{n} record{' of the fact file was' if n == 1 else 's of the fact file were'} left out (data/left_out.csv "
        f"lists {'it' if n == 1 else 'them'}); {why if len(counts) > 1 else 'the reason'}: {reasons}."
    )


def r2_tables(regressions: pd.DataFrame, paper: pd.DataFrame) -> list[dict[str, Any]]:
    """The tables of the page, the headline's first: name, rows, notes.

    A row holds ours, without what is withheld, and the paper's or None.
    """
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
            theirs = published.get((str(method).lower(), PAPER_SCORES.get(score), ours["problem"]))
            if theirs is not None and theirs["note"]:
                notes.append(f"{words(ours['problem'])}: {theirs['note']}")
            rows.append({"ours": shown(ours), "paper": theirs})
        variant = f"{words(measure)}, {module}, window {window}"
        name = f"{words(score).capitalize()} score, {method_label(str(method))}; trace: {variant}"
        tables.append({"name": name, "rows": rows, "notes": notes, "paper": any(row["paper"] for row in rows)})
    return tables


def _withheld(regressions: pd.DataFrame) -> list[tuple[str, str]]:
    """(statistics, reason) of all that is withheld in any row and has a value there."""
    found: dict[str, list[str]] = {}
    for row in regressions.to_dict("records"):
        for name, why in withheld(row).items():
            if not math.isnan(row[name]) and name not in found.setdefault(why, []):
                found[why].append(name)
    return [(listed(names), why) for why, names in found.items() if names]


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


def _small(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1e}"


def _range(values: "pd.Series[float]", form: str) -> str:
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"
