"""Context prefixes: short texts before a prompt, over which ROME averages its key and its objective.

Meng et al. 2022, appendix E.5, sample them from the model, as is done here. Each goes on from an opening; the openings
are dealt out by the seed over all lengths, none twice until all are used. A text that is nearly another prefix adds
little to a mean over prefixes, so it is not taken: the next opening is tried.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pipeline.lm.generate import OPENINGS as TEXT_OPENINGS
from pipeline.lm.generate import sample
from pipeline.lm.model import LanguageModel
from pipeline.seeds import derive

# With those of the sampled text, enough for the twenty prefixes of the papers. No two begin with the same two words.
OPENINGS = (
    *TEXT_OPENINGS,
    "Many people", "At least", "Before the", "Her brother", "Our next", "Last year", "Some of", "They were",
    "Several years", "To make", "With a", "From here", "You should", "As long", "Two friends", "Today we",
)  # fmt: skip


def near_duplicates(one: str, other: str) -> bool:
    """Whether two texts begin with the same two words, or more than half of the different words of the shorter are in
    the other; case and punctuation do not count.
    """
    first, second = _words(one), _words(other)
    if not first or not second:
        return True
    return first[:2] == second[:2] or overlap(one, other) > 0.5


def overlap(one: str, other: str) -> float:
    """The share of the different words of the text that has fewer which the other has too; 1 for a text without."""
    first, second = set(_words(one)), set(_words(other))
    fewer = min(len(first), len(second))
    return len(first & second) / fewer if fewer else 1.0


def _words(text: str) -> list[str]:
    stripped = ("".join(c for c in word if c.isalnum()) for word in text.casefold().split())
    return [word for word in stripped if word]


def context_prefixes(
    lm: LanguageModel, lengths: Sequence[int], per_length: int, temperature: float, seed: int
) -> list[str]:
    """The strings to put before a prompt, the empty one first; the others are sampled text closed by ". ".

    No two are `near_duplicates`, unless a model says the same whatever opening is left, or all openings are used: then
    the draw that has the least in common with the others is taken.
    """
    found: list[str] = []
    deck: list[str] = []
    for length in (length for length in lengths for _ in range(per_length)):
        number = len(found)
        if not deck:
            deck = list(OPENINGS)
            random.Random(derive(seed, "openings", str(number))).shuffle(deck)
        drawn: list[tuple[float, str, str]] = []  # (likeness to those found, text, opening)
        for opening in deck:
            of = derive(seed, "prefixes", str(number), opening)
            ids = sample(lm, 1, length + lm.add_bos, temperature, of, openings=(opening,))[0, int(lm.add_bos) :]
            text = " ".join(lm.tokenizer.decode(ids.tolist(), skip_special_tokens=True).split())
            alike = max((max(overlap(text, other), float(text == other)) for other in found), default=0.0)
            drawn.append((alike, text, opening))
            if _words(text) and not any(near_duplicates(text, other) for other in found):
                break
        else:
            drawn.sort(key=lambda draw: draw[0])  # stable: the first of the least alike
            drawn = drawn[:1]
        _, text, opening = drawn[-1]
        found.append(text)
        deck.remove(opening)
    return ["", *(f"{text}. " for text in found)]
