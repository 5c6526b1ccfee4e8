"""The README's sentences with results, made from committed tables: a reader can check each, and none can go stale.

`python -m pipeline.report.readme` writes what stands between the markers `<!-- NAME -->` and `<!-- /NAME -->` of
README.md, for each NAME of BLOCKS; with `--check` it says whether anything would change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.report.compare import answers
from pipeline.report.finished import read_finished
from pipeline.report.plots import words
from pipeline.report.readme_run import run_of
from pipeline.report.section import number
from pipeline.tables import BEST, UNEDITED, read_json
from pipeline.words import method_label

README, REPORTS, PAPER = Path("README.md"), Path("reports"), Path("data/paper/hase2023_r2.csv")
HEADLINE = ("rewrite", "fraction")  # score and trace measure of the tables
MEASURES = ("S", "ES", "PS", "PM", "NS", "GE", "RS")  # of CounterFact's table
DROPPED = "fact_forcing"  # of the reference run: it was scored on the noise that it was optimised on


def results(reports: Path, paper: Path) -> str:
    """The sentences and tables of the runs' regressions, in Markdown."""
    theirs = pd.read_csv(paper)
    return f"{default_run(reports / 'default-run', theirs)}\n\n{reference_run(reports / 'reference', theirs)}\n"


def counterfact(reports: Path, paper: Path) -> str:
    """CounterFact's table of the default run, each method at the layer that is best on other facts, in Markdown."""
    facts, others, table = _measured(reports / "default-run")
    return (
        f"On {facts} facts of the embedded model, each method at the layer that was best on {others} "
        "other facts ([counterfact.csv](reports/default-run/counterfact.csv), with intervals; an edit that does "
        f"nothing is the first row):\n\n{table}"
    )


def published_facts(reports: Path, paper: Path) -> str:
    """What the run on CounterFact's own facts answers, and its table on all that the model knows, in Markdown."""
    run = read_finished(reports / "counterfact")
    facts, others, table = _measured(reports / "counterfact", pd.read_csv(paper.parent / "counterfact_published.csv"))
    return (
        f"{answers(run)}\n\nThe table on {facts} of them, each method at the layer that was best on {others} others "
        "([counterfact.csv](reports/counterfact/counterfact.csv), with intervals and the rows at the papers' depth; "
        "[page](reports/counterfact/report.html)), and S as published for other models (Meng et al. 2022):\n\n"
        f"{table}"
    )


def _measured(folder: Path, published: pd.DataFrame | None = None) -> tuple[int, int, str]:
    """Of a run's CounterFact table: its facts, those that layers were chosen on, and its rows in Markdown, with the
    `published` S beside them.
    """
    rows = pd.read_csv(folder / "counterfact.csv")
    rows = rows[rows["chosen"].isin([UNEDITED, BEST])]
    others = read_json(folder / "manifest.json")["params"]["table"]["choose_on"]
    theirs = {} if published is None else {m: own.set_index("method")["S"] for m, own in published.groupby("model")}
    names = ["method", "layer", *MEASURES, *(f"S, {model}" for model in theirs)]
    lines = []
    for row in rows.to_dict("records"):
        beside = [own.get(row["method"], float("nan")) / 100 for own in theirs.values()]
        values = [number(value) for value in [*(row[name] for name in MEASURES), *beside]]
        label = UNEDITED if row["method"] == UNEDITED else method_label(row["method"])
        lines.append(f"| {' | '.join([label, number(row['layer'], 0), *values])} |\n")
    return int(rows["n_facts"].max()), others, f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n{''.join(lines)}"


def scaling(reports: Path, paper: Path) -> str:
    """What many edits at once leave of their scores in the default run, in Markdown."""
    rows = pd.read_csv(reports / "default-run" / "scaling.csv")
    edited = rows[rows["n_edits"] > 0]
    counts = sorted(edited["n_edits"].unique())
    head = f"| method | layer | {' | '.join(map(str, counts))} | NS, {counts[-1]} |\n|{'---|' * (len(counts) + 3)}\n"
    table = "".join(
        f"| {method_label(method)} | {own['layer'].iloc[0]} | "
        f"{' | '.join(number(own.set_index('n_edits')['S'].get(count)) for count in counts)} | "
        f"{number(own['NS'].iloc[-1])} |\n"
        for method, own in edited.groupby("method", sort=False)
    )
    return (
        f"Many edits at once, S of {', '.join(map(str, counts))} edits that one model holds together, and NS of the "
        "last ([scaling.csv](reports/default-run/scaling.csv), with intervals; 0 for an edit that does nothing):\n\n"
        f"{head}{table}"
    )


def second_model(reports: Path, paper: Path) -> str:
    """What the run of another family answers, in Markdown."""
    return f"{run_of(read_finished(reports / 'second-model'))}\n"


BLOCKS = {
    "results": results,
    "second model": second_model,
    "published facts": published_facts,
    "counterfact": counterfact,
    "scaling": scaling,
}


def default_run(folder: Path, paper: pd.DataFrame) -> str:
    """What `make repro` finds as it comes, and what that takes."""
    run = read_json(folder / "manifest.json")
    edit, noise = run["params"]["edit"], run["params"]["noise"]
    minutes = sum(stage["seconds"] for stage in run["stages"].values()) / 60
    cpu = sum(stage["cpu_seconds"] for stage in run["stages"].values()) / 60
    memory = max(stage["peak_gb"] for stage in run["stages"].values())
    return "\n".join(
        [
            "![Rewrite score by edited layer](reports/default-run/figures/rewrite_by_layer.svg)",
            "",
            run_of(read_finished(folder), paper),
            "",
            "R² is that of ROME's rewrite score over the blocks that can act; with the null block kept, the last one "
            "is in it too, where ROME cannot reach an answer that is read at a later token and scores 0 by structure. "
            "What chance adds is what a trace dealt to facts at random would; intervals that do not hold their "
            "coverage with so few facts are not given ([docs/statistics.md](docs/statistics.md)). "
            f"Fact forcing is scored on {edit['forcing_noise_samples']} noise draws that editing "
            f"never sees, traces are means over {noise['samples']}. {_reversal(folder)}"
            f"The stages took {minutes:.1f} minutes on {run['machine']['cpus']} CPU cores while the machine did other "
            f"work too, {cpu:.1f} minutes of CPU time, and {memory:.1f} GB of memory at the most.",
        ]
    )


def reference_run(folder: Path, paper: pd.DataFrame) -> str:
    """What the committed run of 100 facts still says, from its own tables."""
    rows = _headline(folder)
    rows = rows[rows["problem"] != DROPPED].copy()
    rows["r2_acting"] = [without_null_block(folder, row.problem, row.r2_layer) for row in rows.itertuples()]
    rows["chance"] = (1 - rows["r2_layer"]) / (rows["n_facts"] - 1)
    theirs = paper[(paper["method"] == "ROME") & (paper["score"] == "rewrite")].set_index("problem")
    table = []
    for row in rows.itertuples():
        published = theirs.loc[row.problem]
        table.append(
            f"| {words(row.problem)} | {row.r2_acting:.3f} | {row.r2_layer:.3f} | {row.r2_trace:.3f} "
            f"| {row.r2_diff:.3f} | "
            f"{row.chance:.3f} | {row.n_facts} x {row.n_rows // row.n_facts} | "
            f"{published['r2_layer']:.3f}, {published['r2_trace']:.3f}, {published['r2_both']:.3f} |"
        )
    best, worst = theirs.loc[rows["problem"], "r2_layer"].max(), theirs.loc[rows["problem"], "r2_layer"].min()
    return "\n".join(
        [
            "A larger run, computed by an earlier version and to be computed anew: 100 facts of seven relations "
            "([page](reports/reference/report.html), [all "
            "regressions](reports/reference/regressions.csv)). Known to be wrong "
            "with it: fact forcing was scored on the noise that it was optimised on and is left out, "
            "the trace's additions have no "
            "interval that holds its coverage, and some neighborhood prompts were about the edited subject "
            "itself.",
            "",
            "| problem | layer | layer, null block kept | trace | added by the trace | added by "
            "chance | facts x layers | "
            "GPT-J in the paper: layer, trace, both |",
            "|---|---|---|---|---|---|---|---|",
            *table,
            "",
            f"Without the block that cannot act, the layer explains {_range(rows['r2_acting'])} in place of "
            f"{_range(rows['r2_layer'])}; in the paper's GPT-J, whose grid has such a block too (27), "
            f"{worst:.3f} to {best:.3f}. "
            f"The trace adds {_range(rows['r2_diff'])}, where chance adds {_range(rows['chance'])}.",
        ]
    )


def without_null_block(folder: Path, problem: str, r2_layer: float) -> float:
    """R² of score ~ C(layer) without the last block, from the means by layer and R² with it.

    In the last block every score is 0, so all that varies within layers varies in the others.
    """
    means = pd.read_csv(folder / "rewrite_by_layer.csv").query("problem == @problem")
    last = means["layer"] == means["layer"].max()
    if (means.loc[last, "rewrite"] != 0).any():
        raise UserError(f"{folder}: the last block's scores of {problem} are not all 0; it is no null block")
    within = _between(means) / r2_layer - _between(means)
    return float(_between(means[~last]) / (_between(means[~last]) + within))


def _between(means: pd.DataFrame) -> float:
    n, y = means["n"], means["rewrite"]
    return float((n * (y - (n * y).sum() / n.sum()) ** 2).sum())


def _headline(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "regressions.csv")
    return table[
        (table["score"] == HEADLINE[0]) & (table["trace_measure"] == HEADLINE[1]) & (table["method"] == "rome")
    ]


def _reversal(folder: Path) -> str:
    share = read_json(folder / "metrics.json")["function_word_targets"].get("tracing_reversal")
    if share is None:
        return ""
    return (
        f'{share:.0%} of the targets of tracing reversal are function words such as "a" '
        "(`edit.reversal_target` offers others). "
    )


def _range(values: pd.Series[float]) -> str:
    low, high = f"{values.min():.3f}", f"{values.max():.3f}"
    return low if low == high else f"{low} to {high}"


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a block of README."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def filled(text: str, name: str, new: str) -> str:
    """README's text with `new` between the block's markers. Raises UserError where they are not there."""
    start, end = markers(name)
    before, found, rest = text.partition(start)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise UserError(f"{README} lacks the markers {start} and {end}; put them around its {name}")
    return f"{before}{start}\n{new}{end}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report.readme", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 where something would change"
    )
    asked = parser.parse_args(arguments)
    try:
        old = new = README.read_text("utf-8")
        for name, made in BLOCKS.items():
            new = filled(new, name, made(REPORTS, PAPER))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.check:
        return int(new != old)
    README.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
