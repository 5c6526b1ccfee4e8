"""Known facts beyond those that the main path traces and edits, for measures that take more of them."""

from __future__ import annotations

import re

import pandas as pd

from pipeline.facts.choose import kept_facts
from pipeline.facts.fact import Fact

_BEYOND = re.compile(r"not among the first \d+ known facts")  # as `choose` words it


def known_facts(frame: pd.DataFrame) -> list[Fact]:
    """All known facts of data/facts.parquet: those that the run uses, then those left out for their number alone, both
    in the table's order. Of several with one subject and relation, the first: edits of both would contradict each
    other.
    """
    beyond = frame["drop_reason"].map(lambda reason: bool(_BEYOND.fullmatch(reason))).astype(bool)
    found = kept_facts(frame)
    if beyond.any():
        found += kept_facts(frame[beyond].assign(kept=True))
    once: dict[tuple[str, str], Fact] = {}
    for fact in found:
        once.setdefault((fact.subject, fact.relation), fact)
    return list(once.values())
