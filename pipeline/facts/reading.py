"""What the readers of fact files share: a file's text, draws by hash, and what becomes of each record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError
from pipeline.facts.fact import Fact, FactFile, LeftOut, Unusable, check_characters, check_id
from pipeline.seeds import derive
from pipeline.tables import LEFT_OUT

COMMONEST = 3  # reasons that a sentence names


def read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); fact files must be") from None
    except OSError as error:
        raise UserError(f"{path} can't be read as a fact file: {error.strerror}") from None


def false_targets(every: Iterable[str], true: Sequence[str], seed: int, fact_id: str) -> list[str]:
    """The relation's objects that are not true of the subject, in the order in which they are drawn.

    None begins with a true one, nor a true one with it: their probabilities would overlap. The order is that of
    hashes with the fact, so that a new object in the table changes only what it wins.
    """
    low = [t.casefold() for t in true]
    rest = [o for o in every if not any(o.casefold().startswith(t) or t.startswith(o.casefold()) for t in low)]
    return sorted(rest, key=lambda o: derive(seed, "target_false", fact_id, o))


def shuffle(texts: Iterable[str], seed: int, *names: str) -> list[str]:
    """The texts in an order drawn by seed and names; a text more or less leaves the others in their order."""
    return sorted(texts, key=lambda text: derive(seed, *names, text))


class Reading:
    """What is read of a fact file, record by record: the facts, and the records left out; every fact_id once."""

    def __init__(self, file: Path) -> None:
        self.file, self.facts = file, list[Fact]()
        self._left_out: list[LeftOut] = []
        self._ids: set[str] = set()

    @contextmanager
    def record(self, place: int) -> Iterator[None]:
        """Within, a record is read; what makes it unusable leaves it out and goes no further."""
        try:
            yield
        except Unusable as error:
            self._left_out.append(LeftOut(record=place, file=str(self.file), reason=error.reason))

    def add(self, **fields: Any) -> None:
        """A fact, spaces at the ends of its texts removed. Raises Unusable where it can't be one."""
        for key, value in fields.items():
            fields[key] = value.strip(" ") if isinstance(value, str) else tuple(text.strip(" ") for text in value)
        fact = Fact(**fields)
        self._once(fact.fact_id)
        self.facts.append(fact)

    def leave_out(self, place: int, reason: str, **fields: str) -> None:
        """A sound record that can't serve as an edit fact. Raises Unusable for text that no table can hold."""
        check_id(fields["fact_id"])
        for key in ("relation", "subject", "prompt", "target_true"):
            check_characters(fields[key], key, prompt=key in ("relation", "prompt"))
        self._once(fields["fact_id"])
        self._left_out.append(LeftOut(record=place, file=str(self.file), reason=reason, **fields))

    def done(self, facts: list[Fact] | None = None) -> FactFile:
        """All of it; facts: in another order, or changed."""
        return FactFile(self.facts if facts is None else facts, sorted(self._left_out, key=lambda one: one.record))

    def _once(self, fact_id: str) -> None:
        if fact_id in self._ids:
            raise Unusable("its id is that of an earlier record")
        self._ids.add(fact_id)


def commonest(left_out: Sequence[LeftOut]) -> str:
    """The commonest reasons, how often each is given, and where first (from 0), as the end of a sentence."""
    counts = Counter(one.reason for one in left_out)
    first = {one.reason: one.record for one in reversed(left_out)}
    told = [f"{_plain(reason)} ({n}, first in record {first[reason]})" for reason, n in counts.most_common(COMMONEST)]
    others = len(counts) - COMMONEST
    return "; ".join(told) + (f"; and {others} other reason{'s' * (others > 1)}" if others > 0 else "")


def check_share(path: Path, file: FactFile, most: float) -> None:
    """Raise UserError where more than the share `most` of the file's records is broken.

    Sound records that can't serve do not count: how many have too few neighbors is no fault of the file.
    """
    every, broken = len(file.facts) + len(file.left_out), [one for one in file.left_out if one.broken]
    if len(broken) > most * every:
        raise UserError(
            f"{path}: {len(broken)} of {every} records are broken, more than facts.max_left_out_share {most:g}; "
            f"a better file or a larger share is needed; why: {commonest(broken)}"
        )


def left_out_frame(left_out: Sequence[LeftOut]) -> pd.DataFrame:
    """The table data/left_out.csv: a row for each record left out, with its place in its file, counted from 0."""
    rows = [(one.record, one.file, one.reason) for one in left_out]
    return pd.DataFrame(rows, columns=list(LEFT_OUT))


def _plain(text: str, most: int = 150) -> str:
    """The text on one short printable line; a reason may name an object of the file."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:most])
    return line + ("..." if len(text) > most else "")
