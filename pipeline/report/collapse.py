"""The report's section on edits that disable the model: how many, where, with which key, and R² without them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pipeline.analysis.collapse import collapse_by_layer, totals
from pipeline.report.plots import Plot, bands, both_widths, legend_below, listed, panels, style, words
from pipeline.report.section import Section, Table, number
from pipeline.words import method_label

_KEYS = {
    "prompt": "key: prompt (the update is aimed at the mean key and divides by the bare prompt's)",
    "mean": "key: mean (one key throughout)",
}


def section(table: pd.DataFrame, r2: pd.DataFrame, collapse_nats: float) -> dict[str, Any]:
    """What the page says: `sentence`, and `rows` for each method and problem where an edit collapsed.

    `table` and `r2` come from `pipeline.analysis.collapse`; collapse_nats: the rise, in nats a token, that counts.
    """
    count = totals(table)
    if not count["measured"]:
        return {"sentence": "Whether edits disable the model was not measured (edit.text_tokens is 0).", "rows": []}
    used = table.drop_duplicates(["method", "update_key"])
    keyed = listed([
        f"{method_label(str(row.method))} with {_KEYS.get(row.update_key, f'key: {row.update_key}')}"
        if row.update_key else method_label(str(row.method))
        for row in used.itertuples()
    ])  # fmt: skip
    rise = f"the loss of the model's own text by more than {collapse_nats:g} nats a token"
    if not count["collapsed"]:
        worst = table["text_loss_rise_max"].max()
        return {
            "sentence": f"No edit collapsed the model: none of {count['measured']} edits by {keyed} raised {rise}; "
            f"the largest rise is {worst:.3f}.",
            "rows": [],
        }
    return {
        "sentence": f"{count['collapsed']} of {count['measured']} edits by {keyed} collapsed the model: they raised "
        f"{rise}. Such an edit may still score well on its own prompt. {_moved(r2)}",
        "rows": [_row(group, r2) for _, group in table.groupby(["method", "problem"], sort=False) if _any(group)],
    }


def _any(group: pd.DataFrame) -> bool:
    return bool(group["n_collapsed"].sum())


def _moved(r2: pd.DataFrame) -> str:
    """How far R² goes without the collapsed rows, over problems and methods where it is defined both ways."""
    rows = r2[r2["n_collapsed"] > 0].dropna(subset=["r2_layer", "r2_layer_without"])
    if rows.empty:
        return "No regression is defined both with and without them."
    moved = rows.assign(
        layer=rows["r2_layer_without"] - rows["r2_layer"], both=rows["r2_both_without"] - rows["r2_both"]
    )
    furthest = moved.loc[moved["layer"].abs().idxmax()]
    return (
        f"Without their rows, R² of the {words(str(furthest['score']))} score changes by {_span(moved['layer'])} "
        f"(layer) and {_span(moved['both'])} (layer and trace); of the layer the most for "
        f"{words(str(furthest['problem']))}, {furthest['r2_layer']:.3f} to {furthest['r2_layer_without']:.3f}."
    )


def _span(values: "pd.Series[float]") -> str:
    low, high = f"{values.min():+.3f}", f"{values.max():+.3f}"
    return low if low == high else f"{low} to {high}"


def _row(group: pd.DataFrame, r2: pd.DataFrame) -> dict[str, Any]:
    first = group.iloc[0]
    fits = r2[(r2["method"] == first["method"]) & (r2["problem"] == first["problem"])].to_dict("records")
    fit: Mapping[str, Any] = fits[0] if fits else {}
    layers = group.loc[group["n_collapsed"] > 0, "layer"]
    return {
        "method": first["method"],
        "problem": first["problem"],
        "key": first["update_key"],
        "edits": int(group["n_edits"].sum()),
        "collapsed": int(group["n_collapsed"].sum()),
        "layers": ", ".join(str(layer) for layer in layers),
        "rise": float(group["text_loss_rise_max"].max()),
        "least": float(group["denominator_least"].min()),
        **{name: fit.get(name) for name in ("r2_layer", "r2_layer_without", "r2_both", "r2_both_without")},
    }


def as_section(told: Mapping[str, Any], plot: Plot | None) -> Section:
    """What `section` found as a section of the page, with the figure where there is one."""
    rows = [
        [
            words(str(row["problem"])),
            method_label(str(row["method"])) + (f", key: {row['key']}" if row["key"] else ""),
            str(row["edits"]), str(row["collapsed"]), row["layers"], number(row["rise"]),
            "–" if row["least"] != row["least"] else f"{row['least']:.1e}",
            *(number(row[name]) for name in ("r2_layer", "r2_layer_without", "r2_both", "r2_both_without")),
        ]
        for row in told["rows"]
    ]  # fmt: skip
    table = Table(
        title="Edits that disable the model",
        head=[
            "problem", "method", "made", "collapsed", "at layers", "largest rise", "least denominator", "layer",
            "without", "both", "without",
        ],
        groups=[("", 2), ("edits", 5), ("R²", 4)],
        rows=rows,
        note="**largest rise**: of the text's loss, in nats a token. **least denominator**: the smallest cosine, in "
        "absolute value, of u = C⁻¹k* and the key k that ROME's update divides by; the update grows as it nears 0. "
        "**layer** and **both** are R² as above, for the first score and trace that this run asks for, each beside "
        "what it is **without** the rows of collapsed edits; reports/collapse_r2.csv has every trace.",
        source="collapse.csv",
    )  # fmt: skip
    return Section(
        anchor="collapse",
        title="Edits that disable the model",
        paragraphs=[told["sentence"]],
        tables=[table] if rows else [],
        plots=[] if plot is None else [plot],
    )


@both_widths
def collapse_by_layer_plot(table: pd.DataFrame, collapse_nats: float) -> Plot | None:
    """Share of edits that collapsed by edited layer, one line per method; None where none did."""
    if not _any(table):
        return None
    shares = collapse_by_layer(table).assign(low=float("nan"), high=float("nan"))
    shares["method"] = shares["method"].map(lambda name: method_label(str(name)))
    with style():
        figure, (ax,) = panels(1, columns=1, width=7.6, height=3.4)
        bands(ax, shares, "method", list(shares["method"].unique()), "share")
        ax.set(xlabel="edited layer (counted from 0)", ylabel="share of edits that collapsed", ylim=(-0.03, 1.03))
        legend_below(figure, ax)
    count = totals(table)
    return Plot(
        name="collapse_by_layer",
        title="Edits that disable the model, by layer",
        figure=figure,
        data=shares.drop(columns=["low", "high"]),
        caption=(
            "Share of edits, over all facts and problems together, that raise the loss of the model's own text by more "
            f"than {collapse_nats:g} nats a token: {count['collapsed']} of {count['measured']} edits in all. No means."
        ),
    )
