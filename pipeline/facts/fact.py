"""What a fact is: a subject, a prompt about it, a true and a false way to go on; what may stand in its fields; and what
becomes of a record that gives none.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from pipeline.errors import UserError, quoted

EMBEDDED = "embedded"
# Characters; more is a slip of the file and would fill the model's context.
MAX_ID, MAX_SUBJECT, MAX_TARGET, MAX_PROMPT = 200, 1000, 1000, 10_000

_ID = re.compile(r"[A-Za-z0-9_.-]+")
# Drawn as nothing, though Unicode counts them as letters, marks or symbols: fillers, joiners, variation selectors.
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))


class Unusable(UserError):
    """A text, or a record of a fact file, that can't serve.

    reason: why, in words that are the same for every record with that fault, so that they can be counted.
    """

    def __init__(self, reason: str, sentence: str | None = None) -> None:
        super().__init__(reason if sentence is None else sentence)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A subject, a prompt about it, and the true and a false way to go on.

    prompt holds `{}` once, where the subject stands, and ends right before the target; the targets have no
    leading space. paraphrases and neighborhood are whole prompts, filled in. source is the format that the
    fact was read from. reverse is a prompt about an object, which stands at its `{}`, that the subject goes on
    from; "" where the relation has no natural inverse.
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
    reverse: str = ""

    def __post_init__(self) -> None:
        name = f"fact {quoted(self.fact_id)}: "
        check_id(self.fact_id)
        for field in ("relation", "subject", "prompt", "target_true", "target_false"):
            check_text(getattr(self, field), field, name, prompt=field in ("relation", "prompt"))
        for field in ("paraphrases", "neighborhood"):
            for i, text in enumerate(getattr(self, field)):
                check_text(text, field, name, prompt=True, at=f"[{i}]")
        for field, most in (("subject", MAX_SUBJECT), ("target_true", MAX_TARGET), ("target_false", MAX_TARGET)):
            check_length(getattr(self, field), field, most, name)
        for text in (self.relation, self.prompt, *self.paraphrases, *self.neighborhood, self.reverse):
            check_length(text, "prompt", MAX_PROMPT, name)
        if self.reverse:
            check_text(self.reverse, "reverse", name, prompt=True)
            if self.reverse.count("{}") != 1:
                raise Unusable(
                    "reverse does not hold {} once",
                    f"{name}reverse is {quoted(self.reverse)}; it must hold {{}} once, where the object stands",
                )
        check_place(self.prompt, name)
        if self.target_true == self.target_false:
            raise Unusable(
                "target_true and target_false are the same",
                f"{name}target_true and target_false are both {quoted(self.target_true)}; they must differ",
            )

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)

    @property
    def subject_at(self) -> int:
        """Index of the subject's first character in `text`."""
        return self.prompt.index("{}")

    def reversed(self, target: str) -> str:
        """The reverse prompt with an object filled in."""
        return self.reverse.replace("{}", target)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A record of a fact file that is not used, and why.

    record: its place in `file`, counted from 0, without a table's header. A sound record that can't serve as an edit
    fact has the other fields as well; where something is wrong with the record itself they are empty.
    """

    record: int
    file: str
    reason: str
    fact_id: str = ""
    relation: str = ""
    subject: str = ""
    prompt: str = ""
    target_true: str = ""
    source: str = ""

    @property
    def broken(self) -> bool:
        """Whether something is wrong with the record itself."""
        return not self.fact_id


@dataclass(frozen=True)
class FactFile:
    """What a fact file gives: facts, in the order in which to choose, and the records left out, in the file's order."""

    facts: list[Fact]
    left_out: list[LeftOut]


def blank(text: str) -> bool:
    """Whether nothing of the text is seen: it is empty, or spaces, controls and characters of no width alone."""
    return all(c in _UNSEEN or c.isspace() or unicodedata.category(c) in ("Cc", "Cf") for c in text)


def check_id(fact_id: str) -> None:
    """Raise Unusable unless the fact_id is short and plain: it names units, rows and figures."""
    if not _ID.fullmatch(fact_id) or len(fact_id) > MAX_ID:
        reason = f"the fact_id must consist of letters A-Z, digits, '_', '.' and '-', {MAX_ID} at most"
        raise Unusable(reason, f"fact {quoted(fact_id)}: {reason}")


def check_text(text: str, field: str, where: str = "", prompt: bool = False, at: str = "") -> None:
    """Raise Unusable, its sentence beginning with `where`, unless the text is visible and clean.

    No space at an end, since target and prompt are joined by one; no control characters, but that prompts may
    have several lines (some of CounterFact's paraphrases do). at: the text's place in the field.
    """
    if blank(text):
        raise Unusable(f"{field} is empty", f"{where}{field}{at} is empty; it needs visible text")
    if text != text.strip(" "):
        raise Unusable(
            f"{field} has a space at its beginning or end",
            f"{where}{field}{at} is {quoted(text)}, with a space at its beginning or end; there must be none",
        )
    check_characters(text, field, where, prompt, at)


def check_characters(text: str, field: str, where: str = "", prompt: bool = False, at: str = "") -> None:
    """The part of `check_text` that holds for records that are left out too, as they stand in a table."""
    allowed = "\n\t" if prompt else ""
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in allowed), None)
    if bad:
        reason = f"{field} holds the character U+{ord(bad):04X}"
        told = f"{where}{field}{at} is {quoted(text)}, with the character U+{ord(bad):04X}; there must be none"
        raise Unusable(reason, told)


def check_place(prompt: str, where: str = "") -> None:
    """Raise Unusable unless the prompt has one place for the subject."""
    if (count := prompt.count("{}")) != 1:
        raise Unusable(
            f"prompt holds {{}} {'several times' if count else 'nowhere'}; once, where the subject stands, is right",
            f"{where}prompt {quoted(prompt)} holds {{}} {count} times; once, where the subject stands, is right",
        )


def check_length(text: str, what: str, most: int, where: str = "") -> None:
    """Raise Unusable where the text has more characters than `most`."""
    if len(text) > most:
        raise Unusable(
            f"{what} has more than {most} characters",
            f"{where}the {what} has {len(text)} characters; at most {most} will do",
        )


@dataclass(frozen=True)
class Known:
    """What the model makes of a fact's prompt, measured on the model.

    p_true: probability of the true target. greedy_correct: the greedy text begins with it. within: the first
    N tokens of the greedy text hold it, N being params' facts.known.within_tokens.
    """

    p_true: float
    greedy_correct: bool
    within: bool
