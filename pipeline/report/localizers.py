"""The page's section on localizers that are cheaper than exact tracing: whether they agree with it, and whether they
name better layers to edit at."""

import numpy as np
import pandas as pd
import seaborn as sns

from pipeline.analysis.trust import MIN_FACTS_OF_MEANS, MIN_FACTS_SHOWN
from pipeline.report.plots import Plot, both_widths, facts_phrase, legend_below, panels, style, words
from pipeline.report.section import Section, Table, chance, number, with_interval
from pipeline.words import method_label

_TRACED = "trace_"  # how names of exact tracing begin


def of_tracing(choices: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers.csv whose localizer is exact tracing."""
    return choices[choices["localizer"].str.startswith(_TRACED)]


def sections(agreement: pd.DataFrame, choices: pd.DataFrame, confidence: float) -> list[Section]:
    """The section, of localizers.csv and layers.csv; none where the run has no localizer but tracing."""
    cheaper = choices[~choices["localizer"].str.startswith(_TRACED)]
    if agreement.empty and cheaper.empty:
        return []
    tables = [_agreement(agreement, confidence)] if len(agreement) else []
    tables += [_where(choices)] if len(cheaper) else []
    plots = [agreement_plot(agreement, confidence)] if len(agreement) else []
    return [
        Section(
            anchor="localizers",
            title="Cheaper localizers",
            paragraphs=[_sentence(agreement), _WHAT] if len(agreement) else [_WHAT],
            tables=tables,
            plots=plots,
        )
    ]


_WHAT = (
    "Attribution patching (w: window, in layers) is tracing to first order, all tokens and layers by one backward "
    "pass. Gradient norm is that of the object's log-probability in each down-projection. Integrated gradients are the "
    "attributions above 0 of an MLP's neurons, and logit attribution is what an MLP's output adds to the logit of the "
    "true object over the false one; both at the prompt's last token only."
)


def _first(agreement: pd.DataFrame) -> pd.DataFrame:
    """Agreement with the first variant of tracing, which the page is about."""
    return agreement[agreement["trace"] == agreement["trace"].iloc[0]]


def _sentence(agreement: pd.DataFrame) -> str:
    """Which localizer comes closest to exact tracing, and how much of that any fact's trace would give."""
    best = _first(agreement).sort_values("rho", ascending=False, kind="stable").iloc[0]
    p = float("nan") if best["n_facts"] < MIN_FACTS_SHOWN else best["permutation_pvalue"]
    sure = "of so few facts it may be chance" if p != p else f"that the own trace fits no better has p = {chance(p)}"
    return (
        f"Of the cheaper localizers, {words(best['localizer'])} comes closest to exact tracing: over layers, the mean "
        f"rank correlation of {facts_phrase(int(best['n_facts']))} is {number(best['rho'], 2)}, and "
        f"{number(best['rho_dealt'], 2)} with the trace of another fact of the same relation; {sure}."
    )


def _agreement(agreement: pd.DataFrame, confidence: float) -> Table:
    few = (agreement["n_facts"] < MIN_FACTS_OF_MEANS).any()
    untested = agreement["n_facts"] < MIN_FACTS_SHOWN
    rows = []
    for row, unsure in zip(agreement.to_dict("records"), untested, strict=True):
        ends = ("rho_low", "rho_high") if row["n_facts"] >= MIN_FACTS_OF_MEANS else ()
        low, high = (row[end] for end in ends) if ends else (float("nan"), float("nan"))
        rows.append(
            [
                words(row["localizer"]), words(row["trace"]), with_interval(row["rho"], low, high, 2),
                number(row["rho_dealt"], 2), chance(None if unsure else row["permutation_pvalue"]),
                *(f"{number(row[f'hit_{k}'], 2)} ({number(row[f'hit_{k}_dealt'], 2)})" for k in (1, 2)),
                str(row["n_facts"]),
            ]
        )  # fmt: skip
    note = (
        "Rank correlation over layers between a fact's values and its trace, mean over facts"
        f"{'' if few else f' with its {confidence:.0%} interval by facts'}; with the trace of another fact of the "
        "relation: what would be found if a localizer knew nothing of the fact itself. p: of dealt traces, not "
        "corrected for the number of rows. Within 1, within 2: share of facts whose largest values are so many blocks "
        "apart, in brackets the same with another's trace."
    )
    if few:
        note += f" Below {MIN_FACTS_OF_MEANS} facts no interval is given."
    head = ["localizer", "tracing", "rank correlation", "with another's trace", "p", "within 1", "within 2", "facts"]
    return Table(title="Agreement with exact tracing", head=head, rows=rows, note=note, source="localizers.csv")


def _where(choices: pd.DataFrame) -> Table:
    """Mean score at the layers that each localizer names, by problem; then at one fixed layer and at a random one."""
    score = "rewrite" if (choices["score"] == "rewrite").any() else choices["score"].iloc[0]
    of_score = choices[choices["score"] == score]
    problems, rows = list(dict.fromkeys(of_score["problem"])), []
    for method, group in of_score.groupby("method", sort=False):
        mean = group.set_index(["localizer", "choice", "problem"])["mean"].unstack("problem").reindex(columns=problems)
        named = list(dict.fromkeys(group["localizer"]))
        for localizer in named:
            own, others = mean.loc[(localizer, "traced")], mean.loc[(localizer, "dealt")]
            cells = [f"{number(a)} ({number(b)})" for a, b in zip(own, others, strict=True)]
            rows.append([words(localizer), method_label(str(method)), *cells])
        for choice in ("fixed", "random"):
            cells = [number(value) for value in mean.loc[(named[0], choice)]]
            rows.append([f"{choice} layer", method_label(str(method)), *cells])
    return Table(
        title=f"Where to edit, by localizer: mean {words(score)} score",
        head=["layer", "method", *map(words, problems)],
        rows=rows,
        note=(
            "Where each fact is edited at the layer with the localizer's largest value, in brackets at the layers that "
            "it names for other facts of the relation; at one layer for all, chosen on other facts; at a random one."
        ),
        source="layers.csv",
    )


@both_widths
def agreement_plot(agreement: pd.DataFrame, confidence: float) -> Plot:
    """Mean rank correlation of each localizer with exact tracing, its own and another fact's."""
    rows = _first(agreement).reset_index(drop=True)
    colors, place = sns.color_palette("colorblind"), np.arange(len(rows))
    few = bool((rows["n_facts"] < MIN_FACTS_OF_MEANS).any())
    with style():
        figure, (ax,) = panels(1, columns=1, width=7.2, height=0.9 + 0.45 * len(rows))
        ends = np.abs(rows[["rho_low", "rho_high"]].to_numpy(float).T - rows["rho"].to_numpy(float))
        ax.errorbar(
            rows["rho"], place, xerr=np.full_like(ends, np.nan) if few else ends, fmt="o", ms=6, color=colors[0],
            elinewidth=1.4, label="the fact's own trace", zorder=3, clip_on=False,
        )  # fmt: skip
        ax.plot(
            rows["rho_dealt"], place, "D", ms=6, mfc="white", color=colors[1],
            label="another fact's trace, of the same relation", zorder=3, clip_on=False,
        )  # fmt: skip
        lowest = min(-0.05, float(rows[["rho", "rho_low", "rho_dealt"]].min().min()) - 0.05)
        ax.set(xlim=(lowest, 1.03), ylim=(len(rows) - 0.5, -0.5), yticks=place, xlabel="rank correlation over layers")
        ax.set_yticklabels([words(str(name)) for name in rows["localizer"]])
        ax.axvline(0, color="0.4", lw=0.8)
        ax.grid(axis="y", visible=False)
        legend_below(figure, ax)
    least = f"no bars below {MIN_FACTS_OF_MEANS} facts"
    bars = least if few else f"bars {confidence:.0%} intervals from resampled facts"
    return Plot(
        name="localizers",
        title="Cheaper localizers against exact tracing",
        figure=figure,
        data=rows,
        caption=(
            f"Spearman's correlation over layers with {words(rows['trace'].iloc[0])}, mean over "
            f"{facts_phrase(int(rows['n_facts'].max()))}; {bars}. Hollow: with the traces of other facts of the same "
            "relation, which is what knowing the common shape alone gives."
        ),
    )
