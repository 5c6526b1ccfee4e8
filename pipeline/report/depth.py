"""Figures of two runs on one axis: a block's relative depth, its number from 0 over the number of blocks."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MultipleLocator

from pipeline.analysis import trust
from pipeline.report.finished import Finished
from pipeline.report.plots import Plot, bands, legend_below, listed, panels, style, words
from pipeline.words import method_label


def rewrite_by_depth(one: Finished, other: Finished, names: tuple[str, str]) -> Plot | None:
    """Mean rewrite score of both runs by relative depth, a panel for each method and problem that both have."""
    table = pd.concat([_by_depth(run.rewrite, run, name) for run, name in zip((one, other), names, strict=True)])
    return _depth_plot(
        table, ["problem", "method"], "rewrite", names, name="rewrite_by_depth", title="Edit success by relative depth",
        label="rewrite score (0 to 1)", limits=(-0.03, 1.03), what="Mean rewrite score over facts by edited block",
        confidence=one.confidence,
    )  # fmt: skip


def trace_by_depth(one: Finished, other: Finished, names: tuple[str, str]) -> Plot | None:
    """Mean tracing effect of both runs by relative depth, a panel for each kind of token that both have.

    Of each run's first module and window.
    """
    parts, variants = [], []
    for run, name in zip((one, other), names, strict=True):
        if run.traced.empty:
            return None
        module, window = run.traced[["module", "window"]].iloc[0]
        first = run.traced[(run.traced["module"] == module) & (run.traced["window"] == window)]
        parts.append(_by_depth(first, run, name))
        variants.append(f"{module} in windows of {window} of {run.blocks} blocks in {name}")
    return _depth_plot(
        pd.concat(parts), ["line"], "effect", names, name="trace_by_depth", title="Tracing effect by relative depth",
        label="tracing effect (probability)", limits=None,
        what=f"Mean tracing effect over facts by the restored window's middle block ({', '.join(variants)})",
        confidence=one.confidence,
    )  # fmt: skip


def _by_depth(table: pd.DataFrame, run: Finished, name: str) -> pd.DataFrame:
    return trust.bands(table).assign(run=name, depth=table["layer"] / run.blocks)


def _depth_plot(
    table: pd.DataFrame,
    keys: list[str],
    value: str,
    names: tuple[str, str],
    *,
    name: str,
    title: str,
    label: str,
    limits: tuple[float, float] | None,
    what: str,
    confidence: float,
) -> Plot | None:
    """A panel for each value of `keys` that both runs have, a line a run; None where they share none."""
    shared = [(key, group) for key, group in table.groupby(keys, sort=False) if group["run"].nunique() == len(names)]
    if not shared:
        return None
    with style():
        figure, axes = panels(len(shared), columns=2, width=4.6 if len(shared) > 1 else 7.6, height=3.2)
        for ax, (key, group) in zip(axes, shared, strict=True):
            bands(ax, group.assign(layer=group["depth"]), "run", names, value)
            ax.xaxis.set_major_locator(MultipleLocator(0.25))
            ax.set(title=_panel(keys, key), xlim=(-0.02, 1.0), xlabel="block / number of blocks")
            if limits:
                ax.set_ylim(*limits)
        for ax in axes[::2]:
            ax.set_ylabel(label)
        legend_below(figure, axes[0])
    kept = pd.concat([group for _, group in shared])
    counts = [f"{int(kept.loc[kept['run'] == run, 'n'].max())} facts of {run}" for run in names]
    told, few = trust.bands_phrase(kept, confidence), kept["n"] < trust.MIN_FACTS_OF_MEANS
    if few.any() and not few.all():
        told += f", but none below {trust.MIN_FACTS_OF_MEANS} facts"
    return Plot(
        name=name,
        title=title,
        figure=figure,
        data=kept[["run", *keys, "layer", "depth", value, "low", "high", "n"]],
        caption=f"{what}, counted from 0 and over the number of blocks; {listed(counts)}; {told}.",
    )


def _panel(keys: list[str], values: tuple[str, ...]) -> str:
    """A panel's heading: the values of its keys in words."""
    return ", ".join(method_label(v) if key == "method" else words(v) for key, v in zip(keys, values, strict=True))
