"""Two runs' reports on one page: `make compare A=reports/default-run B=reports`.

Does the answer of one hold in the other? Both answers, the settings that differ, regressions side by side, and scores
and traces on one axis, the relative depth: block / number of blocks. Everything is read from the two folders.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.analysis.replication import AGREES, APART, CONTRADICTS, HOLDS, OPEN, SIGN, VERDICTS, Estimate, Pair, pairs
from pipeline.analysis.trust import MIN_FACTS_OF_MEANS, MIN_FACTS_SHOWN, shown
from pipeline.disk import write_bytes
from pipeline.errors import UserError
from pipeline.report import layers, page
from pipeline.report.answer import answer
from pipeline.report.depth import rewrite_by_depth, trace_by_depth
from pipeline.report.finished import Finished, differing, labels, read_finished
from pipeline.report.localizers import of_tracing
from pipeline.report.plots import facts_phrase, listed, words
from pipeline.report.section import Section, Table, number, spread, with_interval
from pipeline.words import method_label

PAGE = Path("reports/compare.html")
_SCORE = "rewrite"
_FIRST = ["trace_module", "trace_window", "trace_measure"]
_MEANS = {
    HOLDS: "holds: of one sign and shown in both",
    AGREES: "of one sign and compatible but not shown in both",
    SIGN: "of one sign but with an interval missing",
    OPEN: "of two signs but perhaps by chance",
    APART: "of one sign but shown to be of another size",
    CONTRADICTS: "of two signs and shown to differ",
}


def regrets(one: Finished, other: Finished) -> list[Pair]:
    """What editing at the traced layer loses against one fixed layer in both runs, by problem and method.

    Of the rewrite score and of each run's first variant of exact tracing.
    """
    return pairs(
        _fixed(one), _fixed(other), ("problem", "method"), "regret", ("regret_low", "regret_high"),
        MIN_FACTS_OF_MEANS,
    )  # fmt: skip


def slopes(one: Finished, other: Finished) -> list[Pair]:
    """How much better a fact edits at the layers where it traces higher, in both runs, by problem and method."""
    return pairs(
        headlines(one), headlines(other), ("problem", "method"), "within_slope",
        ("within_low", "within_high"), MIN_FACTS_SHOWN,
    )  # fmt: skip


def traced(run: Finished) -> pd.DataFrame:
    """Rows of layers.csv on the run's first variant of exact tracing."""
    rows = of_tracing(run.choices)
    return rows[rows["localizer"] == rows["localizer"].iloc[0]] if len(rows) else rows


def _fixed(run: Finished) -> pd.DataFrame:
    rows = traced(run)
    return rows[(rows["score"] == _SCORE) & (rows["choice"] == "fixed")]


def headlines(run: Finished) -> pd.DataFrame:
    """The regressions of the rewrite score on the run's first trace variant, by every method."""
    table = run.regressions
    rows = table[(table[_FIRST] == table[_FIRST].iloc[0]).all(axis=1)] if len(table) else table
    return rows[rows["score"] == _SCORE]


def sentence(found: Sequence[Pair], names: tuple[str, str], confidence: float) -> str:
    """Whether the conclusion holds in both runs, from what `regrets` found."""
    if not found:
        return "The two runs share no method and problem with a rewrite score at several layers: nothing is comparable."
    by = {verdict: [pair for pair in found if pair.verdict == verdict] for verdict in VERDICTS}
    if len(by[HOLDS]) == len(found):
        lead = "The conclusion holds in both runs"
    elif by[HOLDS]:
        lead = f"The conclusion holds in both runs for {len(by[HOLDS])} of {len(found)} problems"
    elif by[CONTRADICTS] or by[APART]:
        lead = "The conclusion of one run does not hold in the other"
    else:
        lead = "Whether the conclusion holds in both runs is not settled"
    several = len({pair.of[1] for pair in found}) > 1
    level = f"{confidence:.0%} intervals in brackets" if any(pair.one.ends or pair.other.ends for pair in found) else ""
    clauses = []
    for verdict, group in by.items():
        if group:
            told = listed([_told(pair, several) for pair in group])
            clauses.append(f"{_MEANS[verdict].removeprefix('holds: ')} for {told}")
    few = any(pair.one.ends is None or pair.other.ends is None for pair in found)
    notes = [note for note in (level, f"none below {MIN_FACTS_OF_MEANS} facts" if few else "") if note]
    ends = f" ({', '.join(notes)})" if notes else ""
    return (
        f"{lead}: what editing at the traced layer loses against one fixed layer, in points of {_SCORE} score in "
        f"{names[0]} and in {names[1]}{ends}, is {'; '.join(clauses)}."
    )


def conclusion(one: Finished, other: Finished) -> str:
    """`sentence` of two runs by their models' names; their intervals have to be of one confidence."""
    return sentence(regrets(one, other), labels(one, other), one.confidence)


def _told(pair: Pair, several: bool) -> str:
    problem, method = words(pair.of[0]), f" by {method_label(pair.of[1])}" if several else ""
    return f"{problem}{method}, {_points(pair.one)} and {_points(pair.other)}"


def _points(estimate: Estimate) -> str:
    return with_interval(100 * estimate.value, *_ends(estimate, 100), digits=1)


def _ends(estimate: Estimate, unit: float) -> tuple[float | None, float | None]:
    """The interval's ends in another unit, both None where there is none."""
    return (None, None) if estimate.ends is None else (unit * estimate.ends[0], unit * estimate.ends[1])


def allowed(found: Sequence[Pair], names: tuple[str, str]) -> list[str]:
    """What the interval of each run still allows to be true, by problem and method: points for the page's list."""
    told = []
    for pair in found:
        both = (_allows(name, estimate) for name, estimate in zip(names, (pair.one, pair.other), strict=True))
        told.append(f"**{words(pair.of[0])}, {method_label(pair.of[1])}**: {'; '.join(both)}.")
    return told


def _allows(name: str, estimate: Estimate) -> str:
    if estimate.ends is None:
        return f"{name}, of {facts_phrase(estimate.n_facts)}, gives no interval"
    ends = [f"a {'loss' if end >= 0 else 'gain'} of {number(abs(100 * end), 1)}" for end in estimate.ends]
    return f"{name}, of {facts_phrase(estimate.n_facts)}, allows anything from {ends[0]} to {ends[1]} points"


def sections(one: Finished, other: Finished, names: tuple[str, str]) -> list[Section]:
    """The page's sections after its sentence."""
    lost, within = regrets(one, other), slopes(one, other)
    plots = [rewrite_by_depth(one, other, names), trace_by_depth(one, other, names)]
    return [
        Section(
            anchor="both",
            title="The conclusion in both",
            paragraphs=[
                "Both intervals on one side of 0, and overlapping: each run shows the sign by itself, and one value "
                "may be true of both. Intervals of means are by facts, of these relations and in these models, and "
                "not corrected for the number of rows."
            ],
            tables=[_effects("loses at the traced layer, points", lost, names, 100, 1),
                    _effects("slope within a fact", within, names, 1, 3)],
            points=allowed(lost, names),
        ),
        Section(
            anchor="answers",
            title="Both answers",
            points=[f"**{name}**: {answers(run)}" for name, run in zip(names, (one, other), strict=True)],
        ),
        Section(
            anchor="depth",
            title="Scores and traces by relative depth",
            plots=[plot for plot in plots if plot is not None],
        ),
        Section(
            anchor="r2",
            title="What the layer explains, and what the trace adds",
            tables=_r2(one, other, names),
        ),
        Section(anchor="settings", title="What differs", tables=_differences(one, other, names)),
    ]  # fmt: skip


def answers(run: Finished) -> str:
    """Where to edit, and what the layer explains, as the run's own page says it."""
    first = layers.section(traced(run), run.confidence)["first"]
    dealings = int(run.settings["regressions.permutations"])
    found = answer(run.regressions, run.model_name, run.confidence, dealings) if len(run.regressions) else ""
    return " ".join(text for text in (first, found) if text) or "no method has scores of two facts at one layer."


def _effects(title: str, found: Sequence[Pair], names: tuple[str, str], unit: float, digits: int) -> Table:
    rows = []
    for pair in found:
        cells = [words(pair.of[0]), method_label(pair.of[1])]
        for estimate in (pair.one, pair.other):
            cells += [number(unit * estimate.value, digits), spread(*_ends(estimate, unit), digits)]
            cells.append(str(estimate.n_facts))
        rows.append([*cells, _MEANS[pair.verdict]])
    of_run = ("estimate", "interval", "facts")
    return Table(
        title=title.capitalize(),
        head=["problem", "method", *of_run, *of_run, "in both"],
        groups=[("", 2), (names[0], 3), (names[1], 3), ("", 1)],
        rows=rows,
    )


def _r2(one: Finished, other: Finished, names: tuple[str, str]) -> list[Table]:
    """Regressions that both runs have of their first trace variants, side by side."""
    keys, both = ["problem", "score", "method"], []
    for run in (one, other):
        table = run.regressions
        first = table[(table[_FIRST] == table[_FIRST].iloc[0]).all(axis=1)] if len(table) else table
        both.append({tuple(row[key] for key in keys): shown(row) for row in first.to_dict("records")})
    rows = []
    for key in (key for key in both[0] if key in both[1]):
        cells = [words(key[0]), words(key[1]), method_label(key[2])]
        for row in (found[key] for found in both):
            cells += [number(row[name]) for name in ("r2_layer", "r2_trace", "r2_diff", "chance")]
            cells += [with_interval(row["gain"], row["gain_low"], row["gain_high"]), number(row["gain_bound"])]
            cells.append(f"{row['n_facts']} × {row['n_layers']}")
        rows.append(cells)
    head = ["layer", "trace", "added", "by chance", "gain", "at most", "facts × layers"]
    return [
        Table(
            title="R² of both runs",
            head=["problem", "score", "method", *head, *head],
            groups=[("", 3), (names[0], len(head)), (names[1], len(head))],
            rows=rows,
            note=f"Trace: {_variant(one)} in {names[0]}, {_variant(other)} in {names[1]}. **added**: both minus layer; "
            "**by chance**: what a trace dealt to facts at random would add; **gain**: added beyond that, with its "
            f"{one.confidence:.0%} interval; **at most**: the largest gain that the facts still allow. A dash, or no "
            "interval: of too few facts, or not defined.",
            filters=(0, 1, 2),
        )
    ]


def _variant(run: Finished) -> str:
    """The trace that the run's first regressions are on."""
    if run.regressions.empty:
        return "none"
    module, window, measure = run.regressions[_FIRST].iloc[0]
    return f"{words(measure)}, {module}, window {window}"


def _differences(one: Finished, other: Finished, names: tuple[str, str]) -> list[Table]:
    """Settings, models and versions in which the runs differ."""
    model = [
        (f"{name} of the model", str(one.model[name]), str(other.model[name]))
        for name in ("family", "layers", "parameters", "vocabulary")
        if one.model[name] != other.model[name]
    ]
    rows = [*differing(one.settings, other.settings), *model, *differing(one.versions, other.versions)]
    return [
        Table(
            title="Settings, models and versions that differ",
            head=["what", *names],
            rows=rows or [("nothing", "–", "–")],
            wraps=True,
            note="Of the settings in params.yaml, those that these tables rest on.",
        )
    ]


def write(one: Finished, other: Finished, path: Path) -> None:
    """Write the page. Raises UserError where the runs' intervals are not of one confidence, or one folder is both."""
    if one.folder.resolve() == other.folder.resolve():
        raise UserError(f"{one.folder} and {other.folder} are one folder; the reports of two runs are right")
    if one.confidence != other.confidence:
        raise UserError(
            f"regressions.confidence is {one.confidence:g} in {one.folder} but {other.confidence:g} in {other.folder}, "
            "and intervals are compared; run dvc repro with the same in one of them"
        )
    names = labels(one, other)
    found = sections(one, other, names)
    first = conclusion(one, other)
    with tempfile.TemporaryDirectory() as folder:
        saved = page.save((plot for section in found for plot in section.plots), Path(folder), dpi=100)
        text = page.render_sections(f"{names[0]} beside {names[1]}", first, found, saved)
    write_bytes(path, text.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report.compare", description=__doc__)
    parser.add_argument("folders", nargs=2, metavar="FOLDER", help="folder with the reports of a run")
    parser.add_argument("--out", type=Path, default=PAGE, help="where to write the page (%(default)s)")
    asked = parser.parse_args(arguments)
    try:
        if not all(asked.folders):
            raise UserError("two folders with reports are needed: make compare A=reports/default-run B=reports")
        one, other = (read_finished(Path(folder)) for folder in asked.folders)
        write(one, other, asked.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
