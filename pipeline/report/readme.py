"""The README's sentences with results, made from committed tables: a reader can check each, and none can go stale.

`python -m pipeline.report.readme` writes what stands between the markers `<!-- NAME -->` and `<!-- /NAME -->` of each
of FILES; with `--check` it says whether anything would change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.report.compare import answers, conclusion
from pipeline.report.finished import read_finished
from pipeline.report.readme_run import run_of, statistics_of
from pipeline.report.section import number
from pipeline.tables import BEST, UNEDITED, read_json
from pipeline.words import method_label

README, STATISTICS = Path("README.md"), Path("docs/statistics.md")
REPORTS, PAPER = Path("reports"), Path("data/paper/hase2023_r2.csv")
MEASURED = "reference"  # the run whose stages of measures/ are told
MEASURES = ("S", "ES", "PS", "PM", "NS", "GE", "RS")  # of CounterFact's table


def results(reports: Path, paper: Path) -> str:
    """What the reference run answers, in Markdown."""
    folder = reports / "reference"
    return "\n".join(
        [
            "![Rewrite score by edited layer](reports/reference/figures/rewrite_by_layer.svg)",
            "",
            run_of(read_finished(folder), pd.read_csv(paper)),
            "",
            _read_so(folder),
            "",
        ]
    )


def default_run(reports: Path, paper: Path) -> str:
    """What `make repro` finds as it comes, and what that takes, in Markdown."""
    folder = reports / "default-run"
    run = read_json(folder / "manifest.json")
    minutes = sum(stage["seconds"] for stage in run["stages"].values()) / 60
    cpu = sum(stage["cpu_seconds"] for stage in run["stages"].values()) / 60
    memory = max(stage["peak_gb"] for stage in run["stages"].values())
    return (
        f"{run_of(read_finished(folder), pd.read_csv(paper))}\n\n"
        f"The stages took {minutes:.1f} minutes on {run['machine']['cpus']} CPU cores while the machine did other work "
        f"too, {cpu:.1f} minutes of CPU time, and {memory:.1f} GB of memory at the most.\n"
    )


def _read_so(folder: Path) -> str:
    """How to read the first table of a run."""
    run = read_json(folder / "manifest.json")
    edit, noise = run["params"]["edit"], run["params"]["noise"]
    return (
        "R² is that of the rewrite score over the blocks that can act; with the null block kept, the last one "
        "is in it too, where ROME cannot reach an answer that is read at a later token and scores 0 by structure. "
        "What chance adds is what a trace dealt to facts at random would. The traced layer loses against one fixed "
        "layer that was chosen on other facts, and against a layer at random, which a trace that has nothing to do "
        "with layers would equal. Intervals are given where they hold their coverage "
        "([docs/statistics.md](docs/statistics.md)). "
        f"Fact forcing is scored on {edit['forcing_noise_samples']} noise draws that editing "
        f"never sees, traces are means over {noise['samples']}. {_reversal(folder)}".rstrip()
    )


def counterfact(reports: Path, paper: Path) -> str:
    """CounterFact's table of the run MEASURED, each method at the layer that is best on other facts, in Markdown."""
    facts, others, table = _measured(reports / MEASURED)
    return (
        f"On {facts} facts of the embedded model, each method at the layer that was best on {others} "
        f"other facts ([counterfact.csv](reports/{MEASURED}/counterfact.csv), with intervals; an edit that does "
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
    """What many edits at once leave of their scores in the run MEASURED, in Markdown."""
    rows = pd.read_csv(reports / MEASURED / "scaling.csv")
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
        f"last ([scaling.csv](reports/{MEASURED}/scaling.csv), with intervals; 0 for an edit that does nothing):\n\n"
        f"{head}{table}"
    )


def second_model(reports: Path, paper: Path) -> str:
    """Whether the reference run's conclusion holds in a model of another family, and what that answers, in Markdown."""
    own, other = (read_finished(reports / run) for run in ("reference", "second-model"))
    return f"{conclusion(own, other)}\n\n{run_of(other)}\n"


def statistics(reports: Path, paper: Path) -> str:
    """The reference run's and the second model's regressions, by all methods, in Markdown."""
    told = [statistics_of(read_finished(reports / run)) for run in ("reference", "second-model")]
    return f"{told[0]}\n\n{told[1]}\n"


Maker = Callable[[Path, Path], str]  # folder of reports and the paper's R² to Markdown
BLOCKS: dict[str, Maker] = {
    "results": results,
    "default run": default_run,
    "second model": second_model,
    "published facts": published_facts,
    "counterfact": counterfact,
    "scaling": scaling,
}
FILES: dict[Path, dict[str, Maker]] = {README: BLOCKS, STATISTICS: {"reference": statistics}}


def _reversal(folder: Path) -> str:
    share = read_json(folder / "metrics.json")["function_word_targets"].get("tracing_reversal")
    if share is None:
        return ""
    return (
        f'{share:.0%} of the targets of tracing reversal are function words such as "a" '
        "(`edit.reversal_target` offers others). "
    )


def markers(name: str) -> tuple[str, str]:
    """What stands before and after a block of README."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def filled(text: str, name: str, new: str) -> str:
    """A text with `new` between the block's markers. Raises UserError where they are not there."""
    start, end = markers(name)
    before, found, rest = text.partition(start)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise UserError(f"the markers {start} and {end} are not there; put them around what is made of {name}")
    return f"{before}{start}\n{new}{end}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report.readme", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 where something would change"
    )
    asked = parser.parse_args(arguments)
    changed = {}
    for path, blocks in FILES.items():
        try:
            old = new = path.read_text("utf-8")
            for name, made in blocks.items():
                new = filled(new, name, made(REPORTS, PAPER))
        except UserError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            return 2
        if new != old:
            changed[path] = new
    if asked.check:
        return int(bool(changed))
    for path, new in changed.items():
        path.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
