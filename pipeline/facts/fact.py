"""What a fact is: a subject, a prompt about it, a true and a false way to go on; and what may stand in its fields."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from pipeline.errors import UserError, quoted

EMBEDDED = "embedded"
# Characters; more is a slip of the file and would fill the model's context.
MAX_ID, MAX_SUBJECT, MAX_TARGET, MAX_PROMPT = 200, 1000, 1000, 10_000

_ID = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A subject, a prompt about it, and the true and a false way to go on.

    prompt holds `{}` once, where the subject stands, and ends right before the target; the targets have no
    leading space. paraphrases and neighborhood are whole prompts, filled in. source is the format that the
    fact was read from.
    Raises UserError, naming the fact, where a field could not serve.
    """

    fact_id: str
    relation: str
    subject: str
    prompt: str
    target_true: str
    target_false: str
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    source: str = EMBEDDED

    def __post_init__(self) -> None:
        name = f"fact {quoted(self.fact_id)}"
        check_id(self.fact_id)
        for field in ("relation", "subject", "prompt", "target_true", "target_false"):
            check_text(getattr(self, field), f"{name}: {field}", prompt=field in ("relation", "prompt"))
        for field in ("paraphrases", "neighborhood"):
            for i, text in enumerate(getattr(self, field)):
                check_text(text, f"{name}: {field}[{i}]", prompt=True)
        for field, most in (("subject", MAX_SUBJECT), ("target_true", MAX_TARGET), ("target_false", MAX_TARGET)):
            if len(getattr(self, field)) > most:
                raise UserError(
                    f"{name}: the {field} has {len(getattr(self, field))} characters; at most {most} will do"
                )
        for text in (self.relation, self.prompt, *self.paraphrases, *self.neighborhood):
            if len(text) > MAX_PROMPT:
                raise UserError(f"{name}: a prompt has {len(text)} characters; at most {MAX_PROMPT} will do")
        if self.prompt.count("{}") != 1:
            raise UserError(
                f"{name}: prompt {quoted(self.prompt)} holds {{}} {self.prompt.count('{}')} times; "
                "once, where the subject stands, is right"
            )
        if self.target_true == self.target_false:
            raise UserError(
                f"{name}: target_true and target_false are both {quoted(self.target_true)}; they must differ"
            )

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)

    @property
    def subject_at(self) -> int:
        """Index of the subject's first character in `text`."""
        return self.prompt.index("{}")


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A record of a fact file that can't serve as an edit fact, and why."""

    fact_id: str
    relation: str
    subject: str
    prompt: str
    target_true: str
    source: str
    reason: str


@dataclass(frozen=True)
class FactFile:
    """What a fact file gives: facts, in the order in which to choose, and the records left out."""

    facts: list[Fact]
    left_out: list[LeftOut]


def check_id(fact_id: str) -> None:
    """Raise UserError unless the fact_id is short and plain: it names units, rows and figures."""
    if not _ID.fullmatch(fact_id) or len(fact_id) > MAX_ID:
        raise UserError(
            f"fact {quoted(fact_id)}: the fact_id must consist of letters A-Z, digits, '_', '.' and '-', "
            f"{MAX_ID} at most"
        )


def check_text(text: str, what: str, prompt: bool = False) -> None:
    """Raise UserError, beginning with `what`, unless the text is visible and clean.

    No space at an end, since target and prompt are joined by one; no control characters, but that prompts may
    have several lines (some of CounterFact's paraphrases do).
    """
    if not text.strip():
        raise UserError(f"{what} is empty; it needs visible text")
    if text != text.strip(" "):
        raise UserError(f"{what} is {quoted(text)}, with a space at its beginning or end; there must be none")
    check_characters(text, what, prompt)


def check_characters(text: str, what: str, prompt: bool = False) -> None:
    """The part of `check_text` that holds for records that are left out too, as they stand in a table."""
    allowed = "\n\t" if prompt else ""
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in allowed), None)
    if bad:
        raise UserError(f"{what} is {quoted(text)}, with the character U+{ord(bad):04X}; there must be none")


@dataclass(frozen=True)
class Known:
    """What the model makes of a fact's prompt, measured on the model.

    p_true: probability of the true target. greedy_correct: the greedy text begins with it. within: the first
    N tokens of the greedy text hold it, N being params' facts.known.within_tokens.
    """

    p_true: float
    greedy_correct: bool
    within: bool
