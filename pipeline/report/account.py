"""What the page says of the run itself: how far its numbers go, its facts, its edits, and what it was made of."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from pipeline.analysis.trust import withheld
from pipeline.report.answer import headline
from pipeline.report.plots import facts_phrase, listed, words
from pipeline.report.section import Section, Table, number

_COMMONEST = 3  # reasons that the sentence about records left out names


def trust(regressions: pd.DataFrame) -> list[str]:
    """What keeps the numbers from being more than they are, each a point of a list."""
    withheld_ = [f"Not printed for some or all rows: {names}; {why}." for names, why in _withheld(regressions)]
    tests, slopes = (int(regressions[name].notna().sum()) for name in ("permutation_pvalue", "within_pvalue"))
    return [
        "The rows of one fact are not independent, nor are facts of one relation. The paper's F-test ignores both and "
        "finds far too much, so its p-value for this run is in regressions.csv only. How often each test and interval "
        "printed here errs was simulated; docs/statistics.md has the table.",
        "A gain above chance does not by itself say where to edit: facts that trace high may simply be easier to edit, "
        "at every layer. Only the slope **within a fact** leaves that out. A trace whose height matters more at some "
        "layers than at others can still pass for it.",
        "An interval or test that finds nothing does not show that there is nothing; **at most** says how much is left "
        "possible. It speaks of facts of these relations, not of other relations.",
        f"This run has {int(headline(regressions)['n_facts'].max())} facts with scores and {len(regressions)} "
        f"regressions. Holm's correction is over their {tests} permutation tests, and over their {slopes} tests of the "
        "slope; regressions.csv has the false discovery rate as well.",
        *withheld_,
        "R² says how much of the variance over these facts and these layers is explained; with other layers edited, "
        "the layer's share changes even if the model does not. The paper's figures come from another model, other "
        "facts and other layers.",
    ]


def facts_section(facts: pd.DataFrame, left_out: pd.DataFrame) -> Section:
    """Which facts were used, and why the others were not."""
    kept = facts[facts["kept"]]
    reasons = facts.loc[~facts["kept"], "drop_reason"].fillna("no reason given").value_counts()
    tables = []
    if len(reasons):
        tables.append(
            Table(
                title="Why the others were not used",
                head=["reason", "facts"],
                rows=[[str(reason), str(count)] for reason, count in reasons.items()],
                wraps=True,
            )
        )
    rows = [
        [
            str(row["prompt"]).replace("{}", str(row["subject"])), str(row["target_true"]), str(row["target_false"]),
            number(row["p_true"]), str(row["relation"]), str(row["fact_id"]),
        ]
        for row in kept.to_dict("records")
    ]  # fmt: skip
    head = ["prompt", "true target", "false target", "p(true)", "relation", "fact"]
    tables.append(Table(title="Facts used", head=head, rows=rows, wraps=True, filters=(4,)))
    said = [f"{len(kept)} of {len(facts)} candidate facts were traced and edited.", left_out_sentence(left_out)]
    return Section(anchor="facts", title="Facts", paragraphs=[text for text in said if text], tables=tables)


def edits_section(counts: pd.DataFrame, targets: pd.DataFrame) -> Section:
    """How many edits have a score and why the others have none, from `pipeline.analysis.scores.count_edits`."""
    rows = [
        [
            words(row["problem"]), row["method"], f"no score: {row['reason']}" if row["reason"] else "scored",
            str(row["edits"]), str(row["facts"]),
        ]
        for row in counts.to_dict("records")
    ]  # fmt: skip
    head = ["problem", "method", "outcome", "edits", "facts"]
    table = Table(title="Edits with a score, and those without", head=head, rows=rows, wraps=True)
    all_scored = "" if counts["reason"].any() else "Every edit has a score; none failed."
    said = [text for text in (all_scored, target_sentence(targets)) if text]
    return Section(anchor="edits", title="Edits", paragraphs=said, tables=[table])


def run_section(manifest: Mapping[str, Any]) -> Section:
    """What the tables were made of: the leaves of the manifest."""
    rows = [[name, value] for name, value in _flat(manifest)]
    return Section(
        anchor="run",
        title="The run",
        paragraphs=["What the tables were made of. Seconds, memory and the machine are in reports/manifest.json."],
        tables=[Table(title="Manifest", head=[], rows=rows, wraps=True)],
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


def _withheld(regressions: pd.DataFrame) -> list[tuple[str, str]]:
    """(statistics, reason) of all that is withheld in any row and has a value there."""
    found: dict[str, list[str]] = {}
    for row in regressions.to_dict("records"):
        for name, why in withheld(row).items():
            if not math.isnan(row[name]) and name not in found.setdefault(why, []):
                found[why].append(name)
    return [(listed(names), why) for why, names in found.items() if names]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Leaves of nested mappings as (dotted name, text); a list is one leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, float):
            yield f"{prefix}{key}", f"{value:.6g}"
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
