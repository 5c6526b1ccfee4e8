"""What the page's fact explorer shows, as compact data: an index of all facts, and a packed record of each.

A record is JSON, deflated (RFC 1950) and in base64, which the browser unpacks when its fact is picked; so a page of a
thousand facts opens as fast as one of ten. Probabilities and scores are whole thousandths; tracing effects are whole
parts of the largest of their map, which has 1,000 of them. The keys are short because there are many:

    index   layers, methods, problems, scores, localizers, relations: names by which records say numbers; facts: [...];
            total
    record  tokens [[text, in subject?]], traces [{n name, c p clean, x p corrupt, u unit, e [token][layer]}],
            loc [[localizer, unit, [layer]]],
            prompts [[kind, text]], edits [{m method, p problem, w window, l layers, t target, b baseline, pre, bpre,
            post [prompt][layer], bpost, s {score: [layer]}, bad {layer: reason}, c [collapsed layers]}],
            texts [[method, layer, prompt, before, after]]
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.report.plots import words
from pipeline.report.scripts import safe_json
from pipeline.tables import UNEDITED
from pipeline.words import method_label

SCORES = ("rewrite", "paraphrase", "neighborhood", "overall")
BUDGET = 9_500_000  # bytes of records; with figures, tables and libraries a page stays below 15 MB
Rows = Mapping[str, NDArray[Any]]  # columns of some rows of a table
_SUBJECT = ("first_subject", "middle_subject", "last_subject")
_LEVELS = 1000  # whole parts of 1, or of a map's largest effect


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """`index` and `records` as JSON that can stand in a script tag; how many facts of how many are in them."""

    index: str
    records: str
    shown: int
    total: int


def explorer(
    facts: pd.DataFrame,
    trace: pd.DataFrame,
    edits: pd.DataFrame,
    scores: pd.DataFrame,
    localizers: pd.DataFrame,
    texts: pd.DataFrame | None = None,
    budget: int = BUDGET,
) -> Explorer:
    """The explorer's data for the facts that were kept, in their order, as many as `budget` bytes hold.

    facts, trace, edits, scores and localizers are the tables of those names; texts: columns fact_id, method, layer,
    prompt, before and after, or None where nothing was generated. A trace table may have a column `localizer`, which
    then names its maps.
    """
    kept = facts[facts["kept"]].to_dict("records")
    methods, problems = (list(dict.fromkeys(edits[name])) for name in ("method", "problem"))
    once = scores.drop_duplicates(["fact_id", "method", "problem", "window", "layer"])
    keys = [name for name in ("localizer", "module", "window") if name in trace]
    traced, edited = _groups(trace, ["fact_id"], keys), _groups(edits, ["fact_id"], ["method", "problem"])
    scored = _groups(once, ["fact_id"], ["method", "problem"])
    cheaper, named = _groups(localizers, ["fact_id"], ["localizer"]), list(dict.fromkeys(localizers["localizer"]))
    written = _groups(texts, ["fact_id"], []) if texts is not None else {}
    index, records, used = [], [], 0
    for fact in kept:
        name = (fact["fact_id"],)
        tokens, maps = _maps(traced.get(name, {}))
        prompts, made = _prompts(fact), []
        for which, rows in edited.get(name, {}).items():
            numbers = {"m": methods.index(which[0]), "p": problems.index(which[1])}
            made.append(numbers | _edits(rows, scored.get(name, {}).get(which), [kind for kind, _ in prompts]))
        loc = [_line(rows, named.index(which[0])) for which, rows in cheaper.get(name, {}).items()]
        record = {"tokens": tokens, "traces": maps, "loc": loc, "prompts": prompts, "edits": made, "texts": []}
        for rows in written.get(name, {}).values():
            record["texts"] = _texts(rows)
        packed = pack(record)
        if used + len(packed) > budget:
            break
        used += len(packed)
        records.append(packed)
        index.append(_entry(fact, maps, made, (len(methods), len(problems))))
    top = {
        "layers": int(max(trace["layer"].max(), edits["layer"].max())) + 1,
        "methods": [[name, method_label(name)] for name in methods],
        "problems": [[name, words(name)] for name in problems],
        "scores": [[name, words(name)] for name in SCORES if name in scores],
        "localizers": [words(str(one)) for one in named],
        "relations": list(dict.fromkeys(row["relation"] for row in index)),
        "facts": index,
        "total": len(kept),
    }
    return Explorer(index=safe_json(top), records=safe_json(records), shown=len(index), total=len(kept))


def pack(record: Mapping[str, Any]) -> str:
    """A record as the browser's DecompressionStream("deflate") unpacks it, in base64."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def unpack(packed: str) -> dict[str, Any]:
    """The record that `pack` packed."""
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return found


def _groups(table: pd.DataFrame, outer: list[str], inner: list[str]) -> dict[Any, dict[Any, Rows]]:
    """Columns of a table cut by `outer`, and within by `inner`: key to key to {column: array}, in the table's order.

    Arrays, as a thousand facts are a million rows, and pandas takes a minute to cut those into this many groups.
    """
    keys = outer + inner
    codes = table.groupby(keys, sort=False).ngroup().to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    columns = {name: table[name].to_numpy()[order] for name in table}
    found: dict[Any, dict[Any, Rows]] = {}
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        rows = {name: column[start:end] for name, column in columns.items()}
        of, within = (tuple(rows[name][0] for name in names) for names in (outer, inner))
        found.setdefault(of, {})[within] = rows
    return found


def _entry(
    fact: Mapping[str, Any], maps: Sequence[Any], edits: Sequence[Any], shape: tuple[int, int]
) -> dict[str, Any]:
    """What a fact is filtered and sorted by; `best`: its rewrite score at its best layer, by method and problem."""
    best: list[list[int | None]] = [[None] * shape[1] for _ in range(shape[0])]
    for edit in edits:
        known = [value for value in edit["s"].get("rewrite", []) if value is not None]
        best[edit["m"]][edit["p"]] = max(known, default=None)
    clean = maps[0]["c"] if maps else None
    return {
        "id": str(fact["fact_id"]), "relation": str(fact["relation"]), "subject": str(fact["subject"]),
        "prompt": str(fact["prompt"]), "true": str(fact["target_true"]), "false": str(fact["target_false"]),
        "p": _whole(fact["p_true"]) if clean is None else clean,
        "effect": _whole(maps[0]["u"] * max((max(row) for row in maps[0]["e"]), default=0)) if maps else None,
        "best": best,
    }  # fmt: skip


def _maps(traces: Mapping[Any, Rows]) -> tuple[list[Any], list[Any]]:
    """Tokens of a fact's prompt, and a map of effects (tokens × layers) for each module and window."""
    tokens: list[Any] = []
    maps = []
    for key, rows in traces.items():
        places, first, at = np.unique(rows["token_index"], return_index=True, return_inverse=True)
        if not tokens:
            tokens = [[str(rows["token"][i]), int(rows["token_role"][i] in _SUBJECT)] for i in first]
        values = np.zeros((len(places), int(rows["layer"].max()) + 1))  # (tokens, layers)
        values[at, rows["layer"]] = np.nan_to_num(rows["effect"])
        unit = float(f"{np.abs(values).max() / _LEVELS:.6g}") or 1.0
        *localizer, module, window = key
        name = ": ".join([*localizer, f"{module}, window of {window} layer{'' if window == 1 else 's'}"])
        clean, noised = _whole(rows["p_clean"][0]), _whole(rows["p_corrupt"][0])
        maps.append({"n": name, "c": clean, "x": noised, "u": unit, "e": np.rint(values / unit).astype(int).tolist()})
    return tokens, maps


def _line(rows: Rows, which: int) -> list[Any]:
    """A localizer's number, its unit, and its values of one fact by layer in whole units, None where it has none."""
    values = np.full(int(rows["layer"].max()) + 1, np.nan)
    values[rows["layer"]] = rows["value"]
    unit = float(f"{np.nanmax(np.abs(values), initial=0) / _LEVELS:.6g}") or 1.0
    whole = np.rint(np.nan_to_num(values) / unit).astype(int).astype(object)
    whole[np.isnan(values)] = None
    return [which, unit, whole.tolist()]


def _prompts(fact: Mapping[str, Any]) -> list[list[str]]:
    """Kind and text of a fact's prompts, in the order of `prompt_index` within each kind."""
    own = [["rewrite", str(fact["prompt"]).replace("{}", str(fact["subject"]))]]
    lists = (("paraphrase", "paraphrases"), ("neighborhood", "neighborhood"))
    return own + [[kind, str(text)] for kind, column in lists for text in fact[column]]


def _edits(rows: Rows, scores: Rows | None, kinds: Sequence[str]) -> dict[str, Any]:
    """A fact's edits by one method for one problem, with the prompts' probabilities by layer; kinds: of its prompts."""
    layers, first = np.unique(rows["layer"], return_index=True)
    start = {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}
    own = int(np.argmax(rows["prompt_kind"] == "rewrite"))  # prompts of the other direction have another target
    place = np.array([start.get(kind, len(kinds)) for kind in rows["prompt_kind"]]) + rows["prompt_index"]
    fits = place < len(kinds)
    at = place[fits], np.searchsorted(layers, rows["layer"][fits])

    def grid(column: str) -> NDArray[np.float64]:
        """A column as (prompts, layers), NaN where there is no row."""
        values = np.full((len(kinds), len(layers)), np.nan)
        values[at] = rows[column][fits]
        return values

    made = {
        "w": int(rows["window"][0]), "l": layers.tolist(),
        "t": str(rows["target"][own]), "b": str(rows["baseline"][own]),
        "pre": _one_each(grid("p_pre")), "post": _wholes(grid("p_post")),
        "bpre": _one_each(grid("p_baseline_pre")), "bpost": _wholes(grid("p_baseline_post")),
        "bad": {str(rows["layer"][i]): str(rows["status"][i]) for i in first if rows["status"][i] != "ok"},
        "s": {}, "c": [],
    }  # fmt: skip
    if scores is not None:
        by_layer = np.searchsorted(layers, scores["layer"])
        for name in SCORES:
            values = np.full(len(layers), np.nan)
            values[by_layer] = scores[name]
            made["s"][name] = _wholes(values)
        made["c"] = sorted(int(layer) for layer in scores["layer"][scores["collapsed"].astype(bool)])
    return made


def _texts(rows: Rows) -> list[list[Any]]:
    """Method, layer, prompt, and what the model writes before and after the edit; layer -1: all layers."""
    columns = (rows[name] for name in ("method", "layer", "prompt", "before", "after"))
    return [
        [method_label(str(method)), int(layer), str(prompt), str(before), str(after)]
        for method, layer, prompt, before, after in zip(*columns, strict=True)
        if method != UNEDITED
    ]


def _whole(value: float) -> int | None:
    """A number between 0 and 1 as whole thousandths; None for NaN."""
    return None if value != value else round(float(value) * _LEVELS)


def _wholes(values: NDArray[np.float64]) -> list[Any]:
    """The same of an array of one or two axes."""
    missing = np.isnan(values)
    whole = np.rint(np.where(missing, 0, values) * _LEVELS).astype(int).astype(object)
    whole[missing] = None
    return whole.tolist()


def _one_each(values: NDArray[np.float64]) -> list[Any]:
    """What a prompt has before any edit: its first value over layers, for shape (prompts, layers)."""
    known = ~np.isnan(values)
    return _wholes(np.where(known.any(axis=1), values[np.arange(len(values)), known.argmax(axis=1)], np.nan))
