"""The override question: where the traces of an edited model peak, and whether an edit outlives the old site.

Hase et al. 2023 leave open why an edit works at blocks where tracing finds little; one answer is that an edit at one
block overrides what sits at another. Two things are asked of each edited model. Where does the trace of the new object,
or of the true one, peak: at the edited block, or at the old site, the layer where the true object's trace peaked before
the edit? And how much of what the edit did to an object's probability is kept when MLP outputs at the subject's last
token are replaced by the unedited model's, or by zeros, in the window at the old site:

    kept = (p(replaced) - p(before the edit)) / (p(after it) - p(before it))

Whatever is said of a place is said of a place drawn at random as well (`chance`): a peak is somewhere, and wide windows
hold much. docs/statistics.md, "Does an edit override?", says what each number would be if there were nothing to find.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.analysis.profiles import Resampling, mean_interval
from pipeline.tables import NO_LAYER, NUMBER, TEXT, WHOLE

OVERRIDE = {
    "fact_id": TEXT, "method": TEXT, "problem": TEXT, "old_layer": WHOLE, "edited_layer": WHOLE, "edit_first": WHOLE,
    "edit_last": WHOLE, "status": TEXT, "object": TEXT, "layer": WHOLE, "window_first": WHOLE, "window_last": WHOLE,
    "p_pre": NUMBER, "p_post": NUMBER, "p_corrupt": NUMBER, "p_restored": NUMBER, "p_unedited": NUMBER,
    "p_unedited_subject": NUMBER, "p_zeroed": NUMBER, "p_zeroed_subject": NUMBER,
}  # fmt: skip
OVERRIDE_COLUMNS = (
    "method", "problem", "object", "edited", "case", "quantity", "mean", "low", "high", "chance", "excess",
    "excess_low", "excess_high", "others", "n_facts",
)  # fmt: skip
LAYERS_COLUMNS = ("method", "problem", "object", "edited", "quantity", "layer", "mean", "low", "high", "n_facts")
NONE, TRACED, ALL = "none", "traced", "all"  # `edited` beside numbers of layers
APART, NEAR = "apart", "near"  # cases of a trace
ABOVE, BELOW, HOLDS = "above", "below", "holds"  # cases of a replaced window
ANY = "any"  # where there are no cases
KEPT = ("kept_unedited", "kept_unedited_subject", "kept_zeroed", "kept_zeroed_subject")
LEAST_ABOVE = "kept_least_above"  # kept_unedited in the window above the edit that leaves the least
QUANTITIES = (
    "change", "total_effect", "peak_at_edited", "peak_at_old", "peak_elsewhere", "half_at_edited", "half_at_old",
    "half_at_both", "effect_at_edited", "effect_at_old", *KEPT, LEAST_ABOVE,
)  # fmt: skip

_Floats = NDArray[np.float64]
_Truths = NDArray[np.bool_]
_KEYS = ["method", "problem", "object"]
_DIGITS = 12  # effects that agree to so many are tied; the lowest layer is taken


@dataclass(frozen=True, kw_only=True)
class Least:
    """What counts. change: of an object's probability by an edit, in the sense that the edit is after; effect: of a
    trace's peak. Both in units of probability.
    """

    change: float
    effect: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One object in one model: the unedited one, or that of one edit of one fact. L layers.

    first, last (L,): the blocks of the window centred on each layer. edit: first and last block that the edit changes,
    None for the unedited model. replaced: by quantity of KEPT, p (L,) with outputs replaced.
    """

    label: int
    old: int
    edit: tuple[int, int] | None
    is_new: bool
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    p_pre: float
    p_post: float
    p_corrupt: float
    effect: _Floats
    replaced: Mapping[str, _Floats]

    @property
    def change(self) -> float:
        """What the edit did to the object's probability, above 0 where it is what the edit is after."""
        return (self.p_post - self.p_pre) * (1 if self.is_new else -1)

    def holding(self, place: tuple[int, int]) -> _Truths:
        """Layers (L,) whose window holds a block of `place`, its first and its last."""
        return self.holding_each([place])[0]

    def holding_each(self, places: Sequence[tuple[int, int]]) -> _Truths:
        """The same for each of S places: (S, L)."""
        ends = np.array(places, dtype=np.int64).reshape(-1, 2)
        return (self.first <= ends[:, 1:]) & (self.last >= ends[:, :1])

    def counts(self, least: Least) -> bool:
        """Whether the edit changed the object's probability enough, or there is none."""
        return self.edit is None or self.change >= least.change

    def kept(self, quantity: str) -> _Floats:
        """Share of the edit's change that is kept (L,); in the unedited model, of the object's probability."""
        before = 0.0 if self.edit is None else self.p_pre
        return (self.replaced[quantity] - before) / (self.p_post - before)


def override_table(table: pd.DataFrame, layers: Sequence[int], least: Least, plan: Resampling) -> pd.DataFrame:
    """reports/override.csv: means over facts with intervals by facts, and what a place drawn at random gives.

    table: data/override.parquet. layers: those that all facts are edited at. Returns the columns OVERRIDE_COLUMNS, a
    row for each quantity, edited layer and case that any fact has. On rows of `all` a fact counts with the mean of its
    edits at `layers`.
    """
    rows = [
        {**names, "fact_id": fact, "edited": edited, "case": case, "quantity": quantity}
        | dict(zip(("value", "chance", "others"), values, strict=True))
        for names, of_facts in _by_object(table)
        for fact, curves, places in _with_others(of_facts)
        for edited in _labels(curves, layers)
        for case, quantity, values in _values(curves, places, least)
    ]
    if not rows:
        return pd.DataFrame(columns=list(OVERRIDE_COLUMNS)).astype({"n_facts": "int64"})
    whole = pd.DataFrame(rows)
    groups = [*_KEYS, "edited", "case", "quantity"]
    by_fact = whole.groupby([*groups, "fact_id"], sort=False)[["value", "chance", "others"]].mean().reset_index()
    found = []
    for names, group in by_fact.groupby(groups, sort=False):
        values = group.sort_values("fact_id")[["value", "chance", "others"]].to_numpy(float)
        mean, low, high, n = mean_interval(np.column_stack([values, values[:, 0] - values[:, 1]]), plan)
        numbers = (mean[0], low[0], high[0], mean[1], mean[3], low[3], high[3], mean[2], n[0])
        found.append((*names, *numbers))
    ordered = pd.DataFrame(found, columns=list(OVERRIDE_COLUMNS))
    places = {name: i for i, name in enumerate((NONE, *map(str, sorted(layers)), TRACED, ALL))}
    order = ordered.assign(
        edited=ordered["edited"].map(places), quantity=ordered["quantity"].map(QUANTITIES.index)
    ).sort_values([*_KEYS, "edited", "quantity", "case"], kind="stable")
    return ordered.loc[order.index].reset_index(drop=True).astype({"n_facts": "int64"})


def layers_table(table: pd.DataFrame, layers: Sequence[int], least: Least, plan: Resampling) -> pd.DataFrame:
    """reports/override_layers.csv: mean effects and kept shares by the layer restored or replaced; LAYERS_COLUMNS.

    Over the facts whose edit counts, at each of `layers`, and of the unedited model (edited is `none`), where quantity
    `old_site` is the share of facts whose old site is the layer.
    """
    curves: dict[tuple[Any, ...], list[_Floats]] = {}
    for names, of_facts in _by_object(table):
        for fact_curves in of_facts.values():
            for one in fact_curves:
                if not one.counts(least) or (one.edit is not None and one.label not in layers):
                    continue
                edited = NONE if one.edit is None else str(one.label)
                for quantity, values in _by_layer(one, least):
                    curves.setdefault((*names.values(), edited, quantity), []).append(values)
    tables = []
    for key, profiles in curves.items():
        mean, low, high, n = mean_interval(np.array(profiles), plan)
        rows = pd.DataFrame({"layer": range(len(mean)), "mean": mean, "low": low, "high": high, "n_facts": n})
        tables.append(rows.assign(**dict(zip((*_KEYS, "edited", "quantity"), key, strict=True))))
    empty = pd.DataFrame(columns=list(LAYERS_COLUMNS))
    return pd.concat(tables, ignore_index=True)[list(LAYERS_COLUMNS)] if tables else empty


def _by_layer(one: Curves, least: Least) -> Iterator[tuple[str, _Floats]]:
    yield "effect", one.effect
    if one.edit is None:
        yield "old_site", np.eye(len(one.effect))[one.old]
    for quantity in _kept_of(one, least):
        if not quantity.endswith("subject"):
            yield quantity, one.kept(quantity)


def _by_object(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[str, list[Curves]]]]:
    """For each method, problem and object its facts, by name; of each, the models that were measured."""
    measured = table[table["p_restored"].notna()]
    for names, group in measured.groupby(_KEYS, sort=False):
        of_facts: dict[str, list[Curves]] = {}
        for (fact, _), rows in group.groupby(["fact_id", "edited_layer"], sort=False):
            of_facts.setdefault(str(fact), []).append(_curves(rows.sort_values("layer")))
        yield dict(zip(_KEYS, names, strict=True)), of_facts


def _curves(rows: pd.DataFrame) -> Curves:
    one = rows.iloc[0]
    edited = int(one["edited_layer"]) != NO_LAYER
    return Curves(
        label=int(one["edited_layer"]),
        old=int(one["old_layer"]),
        edit=(int(one["edit_first"]), int(one["edit_last"])) if edited else None,
        is_new=one["object"] == "new",
        first=rows["window_first"].to_numpy(np.int64),
        last=rows["window_last"].to_numpy(np.int64),
        p_pre=float(one["p_pre"]),
        p_post=float(one["p_post"]),
        p_corrupt=float(one["p_corrupt"]),
        effect=np.round((rows["p_restored"] - rows["p_corrupt"]).to_numpy(float), _DIGITS),
        replaced={name: rows[f"p_{name.removeprefix('kept_')}"].to_numpy(float) for name in KEPT},
    )


_Places = dict[str, list[tuple[int, int]]]


def _with_others(of_facts: Mapping[str, Sequence[Curves]]) -> Iterator[tuple[str, Curves, _Places]]:
    """Each fact's curves, with the places of others: the blocks of the fact's other edits, other facts' old sites."""
    for fact, all_of_it in of_facts.items():
        olds = [(of[0].old, of[0].old) for name, of in of_facts.items() if name != fact]
        for one in all_of_it:
            edits = [other.edit for other in all_of_it if other.edit is not None and one.edit is not None]
            apart = [edit for edit in edits if one.edit and not (one.holding(edit) & one.holding(one.edit)).any()]
            yield fact, one, {"edited": apart, "old": olds}


def _labels(one: Curves, layers: Sequence[int]) -> list[str]:
    """The values of `edited` under which an edit counts."""
    if one.edit is None:
        return [NONE]
    return [str(one.label), ALL] * (one.label in layers) + [TRACED] * (one.label == one.old)


_Numbers = tuple[float, float, float]  # value, chance, others
_NAN = float("nan")


def _values(one: Curves, others: _Places, least: Least) -> Iterator[tuple[str, str, _Numbers]]:
    """(case, quantity, numbers) of all that can be said of one object in one model."""
    if one.edit is not None:
        yield ANY, "change", (one.p_post - one.p_pre, _NAN, _NAN)
    if not one.counts(least):
        return
    yield ANY, "total_effect", (one.p_post - one.p_corrupt, _NAN, _NAN)
    yield from _of_trace(one, others, least)
    for quantity in _kept_of(one, least):
        case, numbers = _kept_at_old(one, one.kept(quantity), [site for site, _ in others["old"]])
        yield case, quantity, numbers
    if one.edit is not None and (above := one.first > one.edit[1]).any():
        kept = one.kept("kept_unedited")[above]
        yield ANY, LEAST_ABOVE, (float(kept.min()), float(kept.mean()), _NAN)


def _of_trace(one: Curves, others: _Places, least: Least) -> Iterator[tuple[str, str, _Numbers]]:
    """Where the trace peaks, and where it is at least half as high as there."""
    at = {"old": (one.old, one.old)} | ({"edited": one.edit} if one.edit is not None else {})
    masks = {name: one.holding(place) for name, place in at.items()}
    case = ANY if one.edit is None else NEAR if (masks["old"] & masks["edited"]).any() else APART
    for name, layer in (("old", one.old), ("edited", one.label)):
        if name in at:
            yield case, f"effect_at_{name}", (float(one.effect[layer]), float(one.effect.mean()), _NAN)
    if one.effect.max() < least.effect:
        return
    random = {name: one_by_one(one, last - start + 1) for name, (start, last) in at.items()}
    for told, judge in (("peak", peaks_in), ("half", half_as_high_in)):
        for name in at:
            elsewhere = one.holding_each(others[name])
            numbers = [float(judge(one.effect, where).mean()) for where in (masks[name][None], random[name])]
            beside = float(judge(one.effect, elsewhere).mean()) if len(elsewhere) else _NAN
            yield case, f"{told}_at_{name}", (numbers[0], numbers[1], beside)
    if case != APART:
        return
    found = [float(peaks_in(one.effect, masks[name][None])[0]) for name in at]
    by_chance = [float(peaks_in(one.effect, random[name]).mean()) for name in at]
    yield case, "peak_elsewhere", (1 - sum(found), 1 - sum(by_chance), _NAN)
    high = {name: half_as_high_in(one.effect, random[name]) for name in at}
    pairs = ~(random["old"].astype(int) @ random["edited"].astype(int).T).astype(bool)  # places that are apart
    both = float((high["old"][:, None] & high["edited"][None])[pairs].mean()) if pairs.any() else _NAN
    own = all(half_as_high_in(one.effect, masks[name][None])[0] for name in at)
    yield case, "half_at_both", (float(own), both, _NAN)


def one_by_one(one: Curves, blocks: int) -> _Truths:
    """The layers (S, L) whose window holds a place of so many `blocks`, at each of its S positions in the model."""
    return one.holding_each([(start, start + blocks - 1) for start in range(len(one.effect) - blocks + 1)])


def peaks_in(effect: _Floats, where: _Truths) -> _Truths:
    """Whether the lowest of the layers with the largest effect (L,) is in each of the sets `where` (S, L): (S,)."""
    return where[:, int(effect.argmax())]


def half_as_high_in(effect: _Floats, where: _Truths) -> _Truths:
    """Whether the effect (L,) is half as large as its largest somewhere in each of the sets `where` (S, L): (S,)."""
    found: _Truths = np.where(where, effect, -np.inf).max(1) >= effect.max() / 2
    return found


def _kept_of(one: Curves, least: Least) -> list[str]:
    """The kept shares that can be told: in the unedited model, of the true object under zeros."""
    if one.edit is not None:
        return list(KEPT)
    return [] if one.is_new or one.p_post < least.change else [name for name in KEPT if "zeroed" in name]


def _kept_at_old(one: Curves, kept: _Floats, sites: Sequence[int]) -> tuple[str, _Numbers]:
    """Case, and what is kept with outputs replaced at the old site, on average at windows like it elsewhere, and on
    average at those of them that are other facts' old `sites`, which lie about as far from the edit.

    Like it: at least as wide (at the model's ends they are cut off), without a block of the old site's, on its side of
    the edit.
    """
    width, old = one.last - one.first, one.old
    like = (width >= width[old]) & ~one.holding((int(one.first[old]), int(one.last[old])))
    case = ANY
    if one.edit is not None:
        sides = np.where(one.holding(one.edit), HOLDS, np.where(one.first > one.edit[1], ABOVE, BELOW))
        case, like = str(sides[old]), like & (sides == sides[old])
    elsewhere = [site for site in sites if like[site]]
    return case, (
        float(kept[old]),
        float(kept[like].mean()) if like.any() else _NAN,
        float(kept[elsewhere].mean()) if elsewhere else _NAN,
    )
