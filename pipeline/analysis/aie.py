"""Average indirect effects by token role and layer, and the average total effect (Meng et al. 2022, section 2.2).

IE of a restored module at token t and layer l: p*(restored) - p*; TE: p - p*. Within a fact the effects of its tokens
of one role are averaged first, then facts: a fact counts once, however many tokens its subject has. (The published
notebook takes the middle and the further tokens of all facts together, and a subject's only token for its first and its
last; here a token has one role.) The severed model: pipeline.locate.severed. Intervals resample whole facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.analysis.profiles import Resampling, mean_interval
from pipeline.seeds import derive
from pipeline.tables import NOT_SEVERED

ROLES = ("first_subject", "middle_subject", "last_subject", "first_subsequent", "further", "last_token")
AIE_COLUMNS = ("module", "window", "severed", "token_role", "layer", "effect", "low", "high", "n_facts")
ATE_COLUMNS = ("p_clean", "p_corrupt", "effect", "low", "high", "confidence", "n_facts", "n_lowered")
SEVERED_COLUMNS = ("severed", "token_role", "layer", "intact", "effect", "taken", "low", "high", "n_facts")
PEAK_COLUMNS = (
    "module", "window", "token_role", "layer", "effect", "held_out", "by_chance", "n_layers", "n_facts",
)  # fmt: skip
_VARIANT = ["module", "window", "severed"]


def profiles(maps: pd.DataFrame) -> Iterator[tuple[tuple[str, int, str], str, pd.DataFrame]]:
    """Effects of each (module, window, severed) and role, as a table facts by layers.

    maps: data/maps.parquet. A fact without a token of a role is not in that role's table; a role that no fact has has
    no table. Tokens before the subject, where nothing can be restored, have no role here.
    """
    for variant, group in maps.groupby(_VARIANT, sort=False):
        for role in ROLES:
            tokens = group[group["token_role"] == role]
            if len(tokens):
                of_fact = tokens.groupby(["fact_id", "layer"])["effect"].mean()
                yield variant, role, of_fact.unstack("layer").sort_index(axis=0).sort_index(axis=1)


def aie_table(maps: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """Mean effect over facts of each module, window, severed module, role and layer: AIE_COLUMNS."""
    rows = []
    for (module, window, severed), role, effects in profiles(maps):
        mean, low, high, n = mean_interval(effects.to_numpy(float), plan)
        columns = (module, window, severed, role, effects.columns, mean, low, high, n)
        rows.append(pd.DataFrame(dict(zip(AIE_COLUMNS, columns, strict=True))))
    return pd.concat(rows, ignore_index=True)


def ate_table(maps: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """The average total effect, in one row: ATE_COLUMNS.

    p_clean, p_corrupt: means over facts; effect: the mean of their difference, with its interval, whose confidence is
    told for all of the tables; n_lowered: facts whose probability the noise lowers.
    """
    facts = maps.groupby("fact_id", sort=True)[["p_clean", "p_corrupt"]].first()
    total = (facts["p_clean"] - facts["p_corrupt"]).to_numpy(float)
    mean, low, high, n = (value[0] for value in mean_interval(total[:, None], plan))
    clean, corrupt = facts.mean()
    row = (clean, corrupt, mean, low, high, plan.confidence, n, int((total > 0).sum()))
    return pd.DataFrame([dict(zip(ATE_COLUMNS, row, strict=True))])


def severed_table(maps: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """What severing a module takes from the effect of a restored hidden state, by role and layer: SEVERED_COLUMNS.

    intact, effect: mean effects without and with severing; taken: the mean over facts of their difference, with its
    interval. 0 is what it would be if the module took no part. No rows where nothing was severed.
    """
    intact = {role: effects for variant, role, effects in profiles(maps) if variant == ("hidden", 1, NOT_SEVERED)}
    rows = []
    for (_, _, severed), role, effects in profiles(maps[maps["severed"] != NOT_SEVERED]):
        whole = intact[role].loc[effects.index, effects.columns]
        mean, low, high, n = mean_interval((whole - effects).to_numpy(float), plan)
        columns = (severed, role, effects.columns, whole.mean(), effects.mean(), mean, low, high, n)
        rows.append(pd.DataFrame(dict(zip(SEVERED_COLUMNS, columns, strict=True))))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(SEVERED_COLUMNS))


def peak_table(maps: pd.DataFrame, plan: Resampling) -> pd.DataFrame:
    """Where each role's mean effect is the largest, per module and window, and what that is worth: PEAK_COLUMNS.

    layer, effect: the largest of n_layers means, chosen and read on the same facts, so flattered. held_out: the mean
    over facts of a fact's effect at the layer that is best on the other facts; NaN for one fact. by_chance: the largest
    mean if there were nothing to find, the mean over plan.permutations draws in which each fact's whole profile keeps
    or changes its sign at random.
    """
    rows = []
    for (module, window, _), role, effects in profiles(maps[maps["severed"] == NOT_SEVERED]):
        values = effects.to_numpy(float)
        means = values.mean(0)
        best = int(means.argmax())
        row = (
            module, window, role, effects.columns[best], means[best], held_out(values), by_chance(values, plan),
            values.shape[1], len(values),
        )  # fmt: skip
        rows.append(dict(zip(PEAK_COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=list(PEAK_COLUMNS))


def held_out(values: NDArray[np.float64]) -> float:
    """Mean over facts of a fact's value at the layer with the largest mean over the others; values (F, L)."""
    count = len(values)
    if count < 2:
        return float("nan")
    of_others = (values.sum(0) - values) / (count - 1)
    return float(values[np.arange(count), of_others.argmax(1)].mean())


def by_chance(values: NDArray[np.float64], plan: Resampling) -> float:
    """Mean of the largest column mean of values (F, L) whose rows are given random signs."""
    rng = np.random.default_rng(derive(plan.seed, "signs of facts"))
    signs = rng.choice((-1.0, 1.0), size=(plan.permutations, len(values)))
    return float((signs @ values / len(values)).max(1).mean())


TABLES: Mapping[str, Callable[[pd.DataFrame, Resampling], pd.DataFrame]] = {
    "aie.csv": aie_table,
    "ate.csv": ate_table,
    "aie_severed.csv": severed_table,
    "aie_peaks.csv": peak_table,
}
