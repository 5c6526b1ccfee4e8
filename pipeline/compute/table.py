"""What the table stage is made of: which facts, which layers are tried on which, and what the texts are scored against.

Layers are chosen on facts of their own: `deal` hands out two sets that have no fact in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline.compute import beside, inputs, statistics
from pipeline.compute.edit_job import EditJob
from pipeline.compute.table_job import WRITTEN, TableJob
from pipeline.edit.methods import METHODS, moments_window
from pipeline.edit.published import place
from pipeline.errors import UserError
from pipeline.facts.download import located
from pipeline.facts.fact import Fact
from pipeline.facts.readers import object_ids
from pipeline.measure.generation import (
    TfIdf,
    generation_entropy,
    read_snippets,
    reference_score,
    reference_texts,
    statements,
)
from pipeline.settings.params import Params
from pipeline.tables import BEST, ERROR_INJECTION, FACTS, NO_LAYER, TABLE_TEXTS, UNEDITED, read

PAPERS = "published depth"  # why a method is shown at a layer that is not BEST


class Row(NamedTuple):
    """A row of the table: a method at a layer, and why there (BEST, PAPERS or UNEDITED)."""

    method: str
    layer: int
    chosen: str


def deal(known: Sequence[Fact], count: int, choose_on: int) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """(facts to report, others to choose layers on): the first `count`, and `choose_on` after them.

    Where the model knows too few, fewer are reported. Raises UserError where none would be.
    """
    most = len(known) - choose_on
    if most < 1:
        raise UserError(
            f"the model knows {len(known)} of the facts that facts.source and facts.relations name, but "
            f"table.choose_on needs {choose_on} and the table 1 more at least; lower it or name more relations"
        )
    shown = min(count, most)
    return tuple(known[:shown]), tuple(known[shown : shown + choose_on])


def choosing_job(params: Params, model: Mapping[str, Any], facts: tuple[Fact, ...], method: str) -> EditJob:
    """Edits of the facts by the method at all of table.layers."""
    return _job(params, model, facts, method, params.table.layers)


def reporting_job(
    params: Params, model: Mapping[str, Any], facts: tuple[Fact, ...], best: Mapping[str, int]
) -> tuple[TableJob, list[Row]]:
    """Edits of the facts by each method at its best layer and where the papers edit, and the rows that these give."""
    jobs, rows = [], [Row(UNEDITED, NO_LAYER, UNEDITED)]
    for method, layer in best.items():
        there = place(method, str(model.get("family")), model["layers"])
        at = {layer} | ({there.layer} if there and not there.settings else set())
        jobs.append(_job(params, model, facts, method, sorted(at)))
        rows.append(Row(method, NO_LAYER if _everywhere(params, method) else layer, BEST))
        if there and there.settings:
            changed = params.for_problem(method, ERROR_INJECTION) | there.settings
            if changed != params.for_problem(method, ERROR_INJECTION):
                jobs.append(_job(params.with_section(method, **changed), model, facts, method, [there.layer]))
            rows.append(Row(method, NO_LAYER, PAPERS))
        elif there:
            rows.append(Row(method, there.layer, PAPERS))
    return TableJob(params, dict(model), facts, tuple(jobs)), rows


def _everywhere(params: Params, method: str) -> bool:
    """Whether the method's one edit changes all blocks, whatever the layer."""
    return params.for_problem(method, ERROR_INJECTION).get("window") == "all"


def _job(
    params: Params, model: Mapping[str, Any], facts: tuple[Fact, ...], method: str, layers: Sequence[int]
) -> EditJob:
    at = params.with_layers(layers)
    window = moments_window(at, method)
    made = statistics.read_for(at, dict(model), beside.STATISTICS, window)
    no_noise = 0.0  # error injection has none
    return EditJob(at, dict(model), facts, no_noise, METHODS[method], ERROR_INJECTION, *made, beside.STATISTICS)


def texts(params: Params, rows: pd.DataFrame) -> pd.DataFrame:
    """data/table_texts.parquet: a row a text, `before` and `after` the edit, with `entropy` and `reference`.

    rows: of `TableJob`. entropy: in bits, of the prompt with what follows it; its mean over a fact's texts is that
    fact's GE. reference: the fact's RS, the same in all rows of an edit; NaN where no reference text is known.
    """
    said = rows[rows["prompt_kind"] == WRITTEN]
    of = ["fact_id", "prompt_index"]
    unedited = said[said["method"] == UNEDITED].set_index(of)["text"].rename("before")
    said = said.join(unedited, on=of).rename(columns={"text": "after"})
    whole = said["prompt"] + said["after"]
    references, weights = _references(params, said)
    said["entropy"] = [generation_entropy([text]) for text in whole]
    said["reference"] = 0.0
    for (fact_id, _, _), group in said.groupby(["fact_id", "method", "layer"]):
        score = reference_score(list(whole[group.index]), references[fact_id], weights)
        said.loc[group.index, "reference"] = score
    return said[list(TABLE_TEXTS)].reset_index(drop=True)


def _references(params: Params, said: pd.DataFrame) -> tuple[dict[str, tuple[str, ...]], TfIdf]:
    """Texts about subjects of which each fact's new object is true, and what words are worth among all such texts."""
    facts = read(inputs.DATA / "facts.parquet", FACTS)
    edited = facts[facts["fact_id"].isin(said["fact_id"])]
    named = list(edited[["fact_id", "relation", "subject", "target_false"]].itertuples(index=False, name=None))
    if params.table.snippets is None:
        found = {i: reference_texts(facts, relation, new, subject) for i, relation, subject, new in named}
        return found, TfIdf(text for texts_ in statements(facts) for text in texts_)
    snippets = read_snippets(Path(params.table.snippets))
    ids = object_ids(located(params.facts.source, params.facts.path))
    found = {i: snippets.get((relation, ids.get(new, "")), ()) for i, relation, _, new in named}
    return found, TfIdf(text for of in snippets.values() for text in of)
