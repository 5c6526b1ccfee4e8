"""What the readers of fact files share: a file's text, draws by hash, facts and left-out records with their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.facts.fact import Fact, LeftOut, check_characters, check_id
from pipeline.seeds import derive


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


def record_left_out(where: str, reason: str, **fields: str) -> LeftOut:
    """A LeftOut; UserError, naming the place, for text that no table can hold."""
    try:
        check_id(fields["fact_id"])
        for key in ("relation", "subject", "prompt", "target_true"):
            check_characters(fields[key], f"fact {fields['fact_id']!r}: {key}", prompt=key in ("relation", "prompt"))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return LeftOut(**fields, reason=reason)


def make_fact(where: str, **fields: Any) -> Fact:
    """A Fact, spaces at the ends of its texts removed; an error names the place it comes from."""
    for key, value in fields.items():
        fields[key] = value.strip(" ") if isinstance(value, str) else tuple(text.strip(" ") for text in value)
    try:
        return Fact(**fields)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
