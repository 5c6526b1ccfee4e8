"""What the scaling stage edits: sets of facts that are edited together, each by one method at one layer.

Meng et al. 2023, "Mass-Editing Memory in a Transformer", section 5.3 (numbers of edits from one to ten thousand) and
5.4 (mixtures of two relations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from pipeline.edit.published import LAYERS, place
from pipeline.facts.fact import Fact

PART = 50  # facts of the unedited model's units

if TYPE_CHECKING:
    from pipeline.settings.params import Params


@dataclass(frozen=True)
class Batch:
    """Facts that are edited at once. n_edits: their number, 0 for none edited. written: of them, those whose texts the
    edited model writes. study: scaling, or of which relations it is a mixture.
    """

    study: str
    number: int
    n_edits: int
    facts: tuple[Fact, ...]
    written: frozenset[str]

    @property
    def label(self) -> str:
        return f"{self.study} {self.n_edits} #{self.number}"


def layer_of(params: Params, method: str, model: Mapping[str, Any]) -> int:
    """The layer that a method edits: params' own, or the papers' (pipeline.edit.published), where these name none
    that of ROME. model: what data/model.json says.
    """
    if params.scaling.layer is not None:
        return params.scaling.layer
    there = place(method if method in LAYERS else "rome", str(model.get("family")), model["layers"])
    assert there is not None
    return there.layer


def once_each(facts: Iterable[Fact]) -> list[Fact]:
    """The facts, and of several with one subject and relation the first: edits of both would contradict each other."""
    found: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        found.setdefault((fact.subject, fact.relation), fact)
    return list(found.values())


def scaling_batches(params: Params, facts: Sequence[Fact]) -> list[Batch]:
    """For each number of edits n, the facts in runs of n from the first on, until `facts` of them are edited.

    A number for which there are too few facts has no batch. Texts are written about the same facts at every n, the
    first ones.
    """
    settings = params.scaling
    written = frozenset(fact.fact_id for fact in facts[: settings.generate])
    found = []
    for n in settings.counts:
        for number in range(min(-(-settings.facts // n), len(facts) // n)):
            found.append(Batch("scaling", number, n, tuple(facts[number * n : (number + 1) * n]), written))
    return found


def mixture_batches(params: Params, facts: Sequence[Fact]) -> list[Batch]:
    """For pairs of the relations with most facts, their first facts edited together, half of each, and each relation
    alone.

    Relations that have fewer than `mixture_edits` facts are left out.
    """
    n = params.scaling.mixture_edits
    of = Counter(fact.relation for fact in facts)
    relations = [relation for relation, count in of.most_common() if count >= n]
    pairs = list(combinations(relations, 2))[: params.scaling.mixtures]
    own = {relation: [fact for fact in facts if fact.relation == relation] for relation in relations}
    found = []
    for relation in dict.fromkeys(name for pair in pairs for name in pair):
        found.append(Batch(relation, 0, n, tuple(own[relation][:n]), frozenset()))
    for a, b in pairs:
        both = tuple(fact for pair in zip(own[a][: n // 2], own[b][: n // 2], strict=True) for fact in pair)
        found.append(Batch(f"{a}+{b}", 0, n, both, frozenset()))
    return found


def unedited(batches: Iterable[Batch]) -> list[Batch]:
    """All facts of the batches once, in parts, to be scored on the model as it is."""
    facts = {fact.fact_id: fact for batch in batches for fact in batch.facts}
    written = frozenset(name for batch in batches for name in batch.written)
    every = list(facts.values())
    parts = [tuple(every[low : low + PART]) for low in range(0, len(every), PART)]
    return [Batch("scaling", number, 0, part, written) for number, part in enumerate(parts)]
