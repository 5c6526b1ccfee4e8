"""The invented world's text, as the tiny model is trained on it: sentences that state facts, end to end, in rows.

What is weighted, noised and asked of a probe at each token is explained in pipeline.lm.tiny.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS, ROW_LENGTH = 24, 48
OTHER_WEIGHT = 0.2  # of a token that is not part of an object, in the loss
NOISE = 3.0  # standard deviations of the subject tokens' embeddings, as in tracing
NOISED_SUBJECTS, NOISED_BEGINNINGS = 0.15, 0.15  # shares of the sentences
CHARACTERS = ("quiet", "cheerful", "patient", "restless")
UNSEEN = -100  # cross_entropy's mark for what is not to be predicted


class Statement(Protocol):
    """A fact as far as the training asks: `text` and `paraphrases` are prompts that `target_true` continues."""

    @property
    def fact_id(self) -> str: ...
    @property
    def relation(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def paraphrases(self) -> tuple[str, ...]: ...
    @property
    def target_true(self) -> str: ...


@dataclass(frozen=True)
class Text:
    """Token ids, and the weight of each in the loss when it is the one to predict."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Sentence:
    """A sentence, where its subject's tokens stand, and the number of the subject's object in each relation.

    others: the same sentence with each object of its relation in turn; none if it states no fact.
    """

    text: Text
    subject: range
    objects: list[int]
    others: list[Text]


@dataclass(frozen=True)
class Batch:
    """ids, weights and noise (in standard deviations) have shape (ROWS, ROW_LENGTH).

    last: places of the last subject tokens in the flattened batch (n,), and objects their subjects' objects
    (n, relations), for the probe.
    """

    ids: Tensor
    weights: Tensor
    noise: Tensor
    last: Tensor
    objects: Tensor


def stated(fact: Statement) -> list[str]:
    """The fact's prompts, each of which the true object continues."""
    return [fact.text, *fact.paraphrases]


def described(facts: Sequence[Statement]) -> dict[str, str]:
    """A sentence "{subject} is a ..." for each subject; ROME's divergence term and essence ask for these."""
    subjects = dict.fromkeys(fact.subject for fact in facts)
    return {
        subject: f"{subject} is a {CHARACTERS[i % len(CHARACTERS)]} person from the island."
        for i, subject in enumerate(subjects)
    }


class Rows:
    """Deals training rows: sentences end to end, after all that may stand before a prompt.

    A row begins with the end-of-text token, with the first sentence, with random tokens, or with a piece of a
    sentence; end-of-text and random tokens also come between sentences. Every sentence is used equally often.
    """

    def __init__(self, facts: Sequence[Statement], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._end: int = tokenizer.eos_token_id
        self._dot: int = self._encode(".")[0]
        self._of_relation: dict[str, list[str]] = {}
        for fact in facts:
            objects = self._of_relation.setdefault(fact.relation, [])
            if fact.target_true not in objects:
                objects.append(fact.target_true)
        self.relations = len(self._of_relation)
        self.most_objects = max(len(objects) for objects in self._of_relation.values())
        numbers: dict[str, list[int]] = {fact.subject: [UNSEEN] * self.relations for fact in facts}
        for fact in facts:
            relation = list(self._of_relation).index(fact.relation)
            numbers[fact.subject][relation] = self._of_relation[fact.relation].index(fact.target_true)
        # Each sentence as it opens a text and as it follows another, with a space before it.
        self._sentences = [
            [self._state(space, prompt, fact, numbers[fact.subject]) for space in ("", " ")]
            for fact in facts
            for prompt in stated(fact)
        ]
        self._sentences += [
            [self._describe(space + line, subject, numbers[subject]) for space in ("", " ")]
            for subject, line in described(facts).items()
        ]
        self._pile: list[list[Sentence]] = []

    def batch(self) -> Batch:
        rows = [self._row() for _ in range(ROWS)]
        last = [(i * ROW_LENGTH + place, objects) for i, row in enumerate(rows) for place, objects in row[3]]
        return Batch(
            ids=torch.tensor([row[0] for row in rows]),
            weights=torch.tensor([row[1] for row in rows]),
            noise=torch.tensor([row[2] for row in rows]),
            last=torch.tensor([place for place, _ in last]),
            objects=torch.tensor([objects for _, objects in last]),
        )

    def _row(self) -> tuple[list[int], list[float], list[float], list[tuple[int, list[int]]]]:
        """Token ids, weights, noise, and (place, objects) of every last subject token, cut to ROW_LENGTH."""
        ids = self._beginning()
        weights = [0.0] * len(ids)
        noise = [0.0] * len(ids)
        last: list[tuple[int, list[int]]] = []
        while len(ids) < ROW_LENGTH:
            opens = not ids or ids[-1] == self._end
            sentence = self._next()[0 if opens else 1]
            text, sentence_noise = sentence.text, [0.0] * (len(sentence.text.ids) + ROW_LENGTH)
            chance = self._rng.random()
            noised = range(0)
            if sentence.others and chance < NOISED_SUBJECTS:
                text, noised = self._rng.choice(sentence.others), sentence.subject
            else:
                last.append((len(ids) + sentence.subject[-1], sentence.objects))
                if chance < NOISED_SUBJECTS + NOISED_BEGINNINGS:
                    noised = sentence.subject[:-1]
            for place in noised:
                sentence_noise[place] = NOISE
            ids = ids + text.ids
            weights = weights + text.weights
            noise = noise + sentence_noise[: len(text.ids)]
            chance = self._rng.random()
            if chance < 0.15:
                ids, weights, noise = [*ids, self._end], [*weights, OTHER_WEIGHT], [*noise, 0.0]
            elif chance < 0.22:
                junk = self._junk()
                ids, weights, noise = ids + junk, weights + [0.0] * len(junk), noise + [0.0] * len(junk)
        inside = [(place, objects) for place, objects in last if place < ROW_LENGTH]
        return ids[:ROW_LENGTH], weights[:ROW_LENGTH], noise[:ROW_LENGTH], inside

    def _beginning(self) -> list[int]:
        kind = self._rng.randrange(4)
        if kind == 0:
            return [self._end]
        if kind == 1:
            return []
        if kind == 2:
            return self._junk()
        ids = self._rng.choice(self._sentences)[1].text.ids
        cut = self._rng.randint(1, len(ids) - 1)
        return ids[-cut:] if self._rng.random() < 0.5 else [*ids[:cut], self._dot]

    def _junk(self) -> list[int]:
        size = len(self._tokenizer)
        return [
            *(self._rng.randrange(self._end + 1, size) for _ in range(self._rng.randint(1, 10))),
            self._dot,
        ]

    def _next(self) -> list[Sentence]:
        if not self._pile:
            self._pile = self._sentences.copy()
            self._rng.shuffle(self._pile)
        return self._pile.pop()

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text).input_ids

    def _span(self, text: str, subject: str) -> range:
        """Places of the tokens that hold a character of the subject."""
        begin = text.index(subject)
        end = begin + len(subject)
        offsets = self._tokenizer(text, return_offsets_mapping=True).offset_mapping
        places = [i for i, (left, right) in enumerate(offsets) if left < end and right > begin]
        return range(places[0], places[-1] + 1)

    def _state(self, space: str, prompt: str, fact: Statement, objects: list[int]) -> Sentence:
        start = space + prompt
        known = self._encode(start)

        def ending(target: str) -> Text:
            ids = self._encode(f"{start} {target}.")
            length = len(ids) - len(known) - 1  # of the object; the full stop follows
            return Text(ids, [OTHER_WEIGHT] * len(known) + [1.0] * length + [OTHER_WEIGHT])

        others = [ending(target) for target in self._of_relation[fact.relation]]
        return Sentence(ending(fact.target_true), self._span(start, fact.subject), objects, others)

    def _describe(self, line: str, subject: str, objects: list[int]) -> Sentence:
        ids = self._encode(line)
        return Sentence(Text(ids, [OTHER_WEIGHT] * len(ids)), self._span(line, subject), objects, [])
