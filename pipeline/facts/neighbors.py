"""Which neighbors stand too close to a fact to measure what an edit does elsewhere.

A neighborhood prompt should be about another subject with the same object. "Pentium 4" is no such subject where
"Pentium" is edited, nor "Germany" where "Nazi Germany" is: what an edit does there may be right.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

# Scripts that put no space between words, or, as Korean does, none before a particle: every place in them may be
# the border of a word. By the first words of their characters' Unicode names.
_NO_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")


def contains(text: str, phrase: str) -> bool:
    """Whether the text holds the phrase as whole words, whatever their case (casefold) and Unicode form (NFKC)."""
    text, phrase = _fold(text), _fold(phrase)
    start = text.find(phrase) if phrase else -1
    while start >= 0:
        if _border(text, start) and _border(text, start + len(phrase)):
            return True
        start = text.find(phrase, start + 1)
    return False


def related(subject: str, other: str) -> bool:
    """Whether one of two subjects contains the other as whole words."""
    return contains(subject, other) or contains(other, subject)


class Templates:
    """The prompt templates of a file, to tell what a prompt is about of which only the whole text is given."""

    def __init__(self, templates: Iterable[str]) -> None:
        self._after: dict[str, set[str]] = defaultdict(set)  # what stands before {} -> what may stand after it
        for template in templates:
            before, _, after = template.partition("{}")
            self._after[before].add(after)
        self._longest = max(map(len, self._after), default=-1)

    def _subjects(self, prompt: str, most: int) -> Iterator[str]:
        """What may fill a template so that it gives the prompt, of `most` characters at most."""
        for start in range(min(self._longest, len(prompt)) + 1):
            after = self._after.get(prompt[:start], ())
            if after:
                stops = range(start + 1, min(len(prompt), start + most) + 1)
                yield from (prompt[start:stop].strip() for stop in stops if prompt[stop:] in after)

    def unrelated(self, prompts: Iterable[str], subject: str) -> tuple[str, ...]:
        """The prompts that do not contain the subject and, as far as a template tells, are not about a part of it."""
        most = 3 * len(subject)  # a part of it in another Unicode form may be longer
        return tuple(
            prompt
            for prompt in prompts
            if not contains(prompt, subject)
            and not any(contains(subject, part) for part in self._subjects(prompt.strip(" "), most))
        )


@lru_cache(maxsize=4096)
def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()


def _border(text: str, place: int) -> bool:
    """Whether a word may begin or end at this place between two characters."""
    return place in (0, len(text)) or not (_joins(text[place - 1]) and _joins(text[place]))


@lru_cache(maxsize=4096)
def _joins(char: str) -> bool:
    """Whether the character holds a word together: letters, digits and the marks on them (re's \\w has no marks)."""
    if unicodedata.category(char)[0] in "LMN" or char in "_\u200c\u200d":
        return not unicodedata.name(char, "").startswith(_NO_SPACES)
    return False
