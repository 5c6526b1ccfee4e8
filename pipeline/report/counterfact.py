"""The report's section on CounterFact's table: each method's measures beside the published ones, and what it makes the
model write."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns

from pipeline.analysis.counterfact import GENERATED, MEASURES
from pipeline.analysis.table import TABLE_COLUMNS
from pipeline.analysis.trust import MIN_FACTS_OF_MEANS
from pipeline.report.plots import Plot, both_widths, facts_phrase, legend_below, listed, panels, style
from pipeline.report.section import Section, Table, number, record, with_interval
from pipeline.report.sources import read_made
from pipeline.tables import BEST, FACTS, TABLE_TEXTS, UNEDITED, read, read_record
from pipeline.words import method_label

COLUMNS = ("S", *MEASURES, *GENERATED)
PUBLISHED_COLUMNS = ("model", "method", *COLUMNS)
HUNDREDTHS = 100  # the papers' unit
SPOKEN = 2  # facts whose texts are shown, and prompts of each
_DRAWN = {"ES": "ES, the edited prompt", "PS": "PS, paraphrases", "NS": "NS, neighborhood"}
_MARKERS = "osD"


def section(reports: Path, data: Path, confidence: float) -> Section:
    """The section, from reports/counterfact.csv, data/table_texts.parquet and what the run and the papers say."""
    table = read_made(reports / "counterfact.csv", TABLE_COLUMNS)
    published = read_made(data / "paper" / "counterfact_published.csv", PUBLISHED_COLUMNS)
    texts, facts = read(data / "table_texts.parquet", TABLE_TEXTS), read(data / "facts.parquet", FACTS)
    asked = read_record(record(data, "table"), made_of=dict)["made_of"]["table"]
    most = int(table["n_facts"].max())
    return Section(
        anchor="counterfact",
        title="CounterFact's table",
        paragraphs=[
            _first(table, confidence),
            f"Each of {facts_phrase(most)} that the model knows is edited towards its false object (error injection). "
            + _short(most, asked["count"])
            + f"Methods stand at the layer whose S is highest on {facts_phrase(asked['choose_on'])} that are not among "
            "these (reports/counterfact_layers.csv has all layers tried), and at the relative depth at which their "
            "authors edit GPT-2 XL, or GPT-J where the model is of its family. Layers count from 0. “Unedited” is what "
            "an edit that does nothing would get: no number says anything but beside it.",
            "ES, PS and NS are shares of prompts: of the edited prompt and of its paraphrases, those on which the new "
            "object is more probable than the old; of neighborhood prompts, where the old one is right, those on which "
            "it is the other way round. EM, PM and NM are mean differences of the two probabilities. S is the harmonic "
            "mean of ES, PS and NS. GE is the entropy of the bigrams and trigrams of what the model then writes, which "
            "falls where it repeats itself; RS is how alike that text is to texts about subjects of which the new "
            "object is true. All are in hundredths, as in the papers; GE is in hundredths of a bit.",
            _unlike(asked),
        ],
        tables=[_table(table, published, confidence), *_spoken(table, texts, facts)],
        plots=[_plot(table, confidence)],
    )


def _first(table: pd.DataFrame, confidence: float) -> str:
    """Which method does best at the layer chosen for it."""
    rows = table[table["chosen"] == BEST].dropna(subset=["S"])
    nothing = table.loc[table["method"] == UNEDITED, "S"].iloc[0]
    if rows.empty:
        return "No method has an S on these facts."
    tops = rows[rows["S"] >= rows["S"].max() - 1e-9]
    names = listed([f"{method_label(row['method'])} ({_place(row['layer'])})" for _, row in tops.iterrows()])
    top = tops.iloc[0]
    few = top["n_facts"] < MIN_FACTS_OF_MEANS
    low, high = (float("nan"),) * 2 if few or len(tops) > 1 else (top["S_low"], top["S_high"])
    sure = f"{confidence:.0%} interval from resampled facts; " if low == low else ""
    if few:
        sure = f"below {MIN_FACTS_OF_MEANS} facts no interval is given, as it would miss the mean too often; "
    return (
        f"Of methods at the layer that is best on other facts, {names} {'has' if len(tops) == 1 else 'have'} the "
        f"highest S: {_cell(top['S'], low, high)} ({sure}the unedited model has {_cell(nothing)})."
    )


def _short(reported: int, asked: int) -> str:
    return f"Asked for were {asked}; the model knows no more. " if reported < asked else ""


def _unlike(asked: dict[str, object]) -> str:
    """In what GE and RS are not the published ones."""
    source = (
        "texts about other subjects with that object, made from the run's own prompts and facts, which are also what "
        "words are weighted by"
        if asked["snippets"] is None
        else "the published snippets, which are also what words are weighted by"
    )
    return (
        f"Not as published: GE and RS are of {asked['generate_prompts']} texts a fact of {asked['generate_tokens']} "
        "tokens each beside its prompt, which suits any subject (the papers' are written for each relation); words are "
        f"told apart by a rule, not by nltk; RS is against {source} (in the papers, Wikipedia articles and their word "
        "counts). And the probability of an object is the product of its tokens', where the papers take the geometric "
        "mean. So GE and RS compare the rows of one run; only S and what it is made of can be set beside the papers, "
        "and those are of other models and other facts."
    )


def _cell(mean: float, low: float = float("nan"), high: float = float("nan")) -> str:
    return with_interval(HUNDREDTHS * mean, HUNDREDTHS * low, HUNDREDTHS * high, 1)


def _place(layer: float) -> str:
    return "all layers" if pd.isna(layer) or layer < 0 else f"layer {int(layer)}"


def _where(row: pd.Series) -> str:
    return "–" if row["method"] == UNEDITED else f"{_place(row['layer'])}, {row['chosen']}"


def _table(table: pd.DataFrame, published: pd.DataFrame, confidence: float) -> Table:
    """Our rows of each method, and the published ones below them."""
    rows: list[list[str]] = []
    for method, ours in table.groupby("method", sort=False):
        label = UNEDITED if method == UNEDITED else method_label(str(method))
        for _, row in ours.iterrows():
            few = row["n_facts"] < MIN_FACTS_OF_MEANS
            ends = [(float("nan"),) * 2 if few else (row[f"{name}_low"], row[f"{name}_high"]) for name in COLUMNS]
            values = [_cell(row[name], *pair) for name, pair in zip(COLUMNS, ends, strict=True)]
            rows.append([label, _where(row), str(int(row["n_facts"])), *values])
        for _, row in published[published["method"] == method].iterrows():
            rows.append([label, f"{row['model']}, published", "", *(number(row[name], 1) for name in COLUMNS)])
    lacking = table["n_facts"].min() < table["n_facts"].max()
    few = bool((table["n_facts"] < MIN_FACTS_OF_MEANS).any())
    return Table(
        title="Methods beside the unedited model",
        head=["method", "where", "facts", *COLUMNS],
        rows=rows,
        note=(
            "Means over facts. "
            + (
                f"No intervals below {MIN_FACTS_OF_MEANS} facts, where they miss the mean too often. "
                if few
                else f"In brackets, {confidence:.0%} intervals from resampled facts. "
            )
            + ("Facts whose edit failed are left out of a row. " if lacking else "")
            + "Published: Meng et al. 2022, GPT-2 XL and GPT-J (data/paper/SOURCE.md)."
        ),
        source="counterfact.csv",
    )


def _spoken(table: pd.DataFrame, texts: pd.DataFrame, facts: pd.DataFrame) -> list[Table]:
    """For the first facts of the table, what is written before the edit and after that of each method."""
    known = facts.set_index("fact_id")
    best = table[table["chosen"] == BEST]
    found = []
    for fact_id in list(dict.fromkeys(texts["fact_id"]))[:SPOKEN]:
        fact, said = known.loc[fact_id], texts[texts["fact_id"] == fact_id]
        before = said[said["method"] == UNEDITED].sort_values("prompt_index").head(SPOKEN)
        rows = [["before any edit", *map(_line, before["after"])]]
        for _, row in best.iterrows():
            layer = -1 if pd.isna(row["layer"]) else int(row["layer"])
            after = said[(said["method"] == row["method"]) & (said["layer"] == layer)].sort_values("prompt_index")
            cells = [_line(text) for text in after["after"].head(SPOKEN)] or ["(the edit failed)"] * len(before)
            rows.append([f"{method_label(row['method'])}, {_place(layer)}", *cells])
        prompt = fact["prompt"].replace("{}", fact["subject"])
        found.append(
            Table(
                title=f"What an edit sounds like: “{prompt} {fact['target_false']}”, not {fact['target_true']}",
                head=["edit", *(f"{prompt} …" for prompt in before["prompt"])],
                rows=rows,
                wraps=True,
                note=(
                    f"The first {SPOKEN} facts of the table, whatever came of them; the same random numbers for all "
                    "rows, each token among the five likeliest. data/table_texts.parquet has all texts."
                ),
            )
        )
    return found


def _line(text: str) -> str:
    """A text on one line, with line breaks shown as such."""
    return " ".join(" ⏎ ".join(text.strip().splitlines()).split())


@both_widths
def _plot(table: pd.DataFrame, confidence: float) -> Plot:
    """ES, PS and NS of the unedited model and of each method at its best layer."""
    rows = table[table["chosen"].isin([UNEDITED, BEST])].reset_index(drop=True)
    few = (rows["n_facts"] < MIN_FACTS_OF_MEANS).to_numpy()
    colors = sns.color_palette("colorblind")
    with style():
        figure, (ax,) = panels(1, columns=1, width=7.6, height=1.2 + 0.5 * len(rows))
        for i, (name, label) in enumerate(_DRAWN.items()):
            mean = rows[name].to_numpy(float)
            ends = np.abs(rows[[f"{name}_low", f"{name}_high"]].to_numpy(float).T - mean)
            ends[:, few] = np.nan
            ax.errorbar(
                mean, np.arange(len(rows)) + 0.18 * (i - 1), xerr=ends, fmt=_MARKERS[i], ms=5, color=colors[i],
                ecolor=colors[i], elinewidth=1.4, label=label, zorder=3, clip_on=False,
            )  # fmt: skip
        ax.set(
            xlim=(-0.03, 1.03), xlabel="share of prompts, mean over facts", yticks=np.arange(len(rows)),
            ylim=(len(rows) - 0.5, -0.5),
        )  # fmt: skip
        ax.set_yticklabels(_names(rows))
        ax.grid(axis="y", visible=False)
        legend_below(figure, ax)
    bars = (
        f"no bars, as below {MIN_FACTS_OF_MEANS} facts they miss the mean too often"
        if few.any()
        else f"bars {confidence:.0%} intervals from resampled facts"
    )
    methods = [method_label(name) for name in rows["method"][1:]]
    return Plot(
        name="counterfact",
        title="Efficacy, paraphrases and neighborhood by method",
        figure=figure,
        data=table,
        caption=(
            f"ES, PS and NS over {facts_phrase(int(rows['n_facts'].max()))}, each the mean over facts of the share of "
            f"its prompts; of the unedited model and of {listed(methods)}, each at the layer that is best on other "
            f"facts; {bars}."
        ),
    )


def _names(rows: pd.DataFrame) -> Sequence[str]:
    """The ticks' labels: a method and its layer."""
    return [
        UNEDITED if method == UNEDITED else f"{method_label(method)}, {_place(layer)}"
        for method, layer in zip(rows["method"], rows["layer"], strict=True)
    ]
