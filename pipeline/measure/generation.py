"""What an edited model writes: whether it repeats itself (GE), and whether it is about the new object (RS).

Both are Meng et al. 2022's, "Locating and Editing Factual Associations in GPT", section 3.4 and its published code, on
texts of 100 tokens that begin with prompts about the subject, the rest drawn among the five likeliest (`top_k=5` of
pipeline.lm.generate.continuations).

GE, generation entropy: for n = 2 and 3 the entropy in bits, -sum f log2 f, over the shares f of a text's n-grams of
words, weighted by 2/3 and 4/3; the mean of the two, and over the texts. The tables of the papers print a hundred times
that. Their words are nltk's, which needs data of its own; here a word is what `WORD` says, without a download. nltk
also parts "don't" into "do" and "n't" and takes "..." for one word, where this has one and three.

RS, reference score: the cosine of the TF-IDF vectors of the generated and of the reference texts, each joined to one.
Terms and weights are those of scikit-learn's TfidfVectorizer, which the published code uses, written out: lower-case
words of two letters or more; tf the count in the text; idf = ln((1 + n) / (1 + df)) + 1 with df of the n texts of a
corpus holding the term. The published idf is of Wikipedia and its vocabulary leaves other words out; here the corpus is
the caller's, and a word that no text of it holds has df = 0. So RS compares methods and layers of one run, not papers.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import UserError, quoted

# A word with what is inside it (well-known, Anna's, 3.5), or one mark of punctuation.
WORD = re.compile(r"\w+(?:[-.,'\u2019]\w+)*|[^\w\s]")
WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of the entropy of n-grams, by n
TERM = re.compile(r"\b\w\w+\b")


def ngram_entropy(text: str, n: int) -> float:
    """Entropy in bits of a text's n-grams of words; 0 for a text that has none."""
    words = WORD.findall(text)
    counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
    shares = counts / counts.sum() if len(counts) else counts
    return float((shares * np.log2(1 / shares)).sum())


def generation_entropy(texts: Sequence[str]) -> float:
    """GE in bits: the weighted mean of bigram and trigram entropy, mean over the texts; NaN without a text."""
    if not texts:
        return float("nan")
    return float(np.mean([np.mean([w * ngram_entropy(text, n) for n, w in WEIGHTS.items()]) for text in texts]))


class TfIdf:
    """How much a term says of the text that it stands in, by how few texts of a corpus hold it."""

    def __init__(self, corpus: Iterable[str]):
        texts = [set(terms(text)) for text in corpus]
        self.texts = len(texts)
        self.holding = Counter(term for text in texts for term in text)

    def idf(self, term: str) -> float:
        """ln((1 + n) / (1 + df)) + 1."""
        return math.log((1 + self.texts) / (1 + self.holding[term])) + 1

    def cosine(self, one: str, other: str) -> float:
        """Cosine of two texts' vectors of tf * idf, in [0, 1]; NaN where one has no term."""
        counts = Counter(terms(one)), Counter(terms(other))
        every = sorted(counts[0].keys() | counts[1].keys())
        idf = np.array([self.idf(term) for term in every])
        a, b = (np.array([count[term] for term in every]) * idf for count in counts)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        return min(float(a @ b) / norms, 1.0) if norms else float("nan")


def terms(text: str) -> list[str]:
    """The terms of a text, one for each place where it stands."""
    return TERM.findall(text.lower())


def reference_score(generated: Sequence[str], references: Sequence[str], weights: TfIdf) -> float:
    """RS: how alike generated and reference texts are, in [0, 1].

    NaN without references, and 0 where the model wrote no term: it then says nothing of the object.
    """
    one, other = " ".join(generated), " ".join(references)
    if not terms(other):
        return float("nan")
    return weights.cosine(one, other) if terms(one) else 0.0


def statements(facts: pd.DataFrame) -> list[tuple[str, ...]]:
    """The texts of each row of facts.parquet: its prompt and paraphrases, each with the true object and a full stop."""
    columns = (facts[name] for name in ("subject", "prompt", "paraphrases", "target_true"))
    return [
        tuple(f"{text} {target}." for text in (prompt.replace("{}", subject), *paraphrases))
        for subject, prompt, paraphrases, target in zip(*columns, strict=True)
    ]


def reference_texts(facts: pd.DataFrame, relation: str, target: str, subject: str) -> tuple[str, ...]:
    """Texts about the other subjects of which `target` is true in that relation, from facts.parquet.

    Facts that the run does not edit are among them. subject: the edited fact's, whose own texts are left out.
    """
    about = (facts["relation"] == relation) & (facts["target_true"] == target) & (facts["subject"] != subject)
    return tuple(text for texts in statements(facts[about]) for text in texts)


def read_snippets(path: Path) -> Mapping[tuple[str, str], tuple[str, ...]]:
    """Texts about subjects by relation and object, from Meng et al.'s attribute_snippets.json.

    The file lists objects with relation_id (P27), target_id (Q142) and samples, each with a text. Returns the texts of
    each (relation_id, target_id). Raises UserError where the file is not of that form.
    """
    try:
        entries = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); the published attribute snippets are right") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} holds a JSON {type(entries).__name__}; a list of attribute snippets is right")
    found: dict[tuple[str, str], list[str]] = {}
    for place, entry in enumerate(entries):
        where = f"{path}: entry {place}"
        of = _get(entry, "relation_id", str, where), _get(entry, "target_id", str, where)
        samples = _get(entry, "samples", list, where)
        texts = [_get(sample, "text", str, f"{where}, sample {i}") for i, sample in enumerate(samples)]
        found.setdefault(of, []).extend(texts)
    return {of: tuple(texts) for of, texts in found.items()}


def _get(record: Any, key: str, kind: type, where: str) -> Any:
    """The record's value of that kind. Raises UserError."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is {quoted(record)}; a JSON object with {key!r} is right")
    if not isinstance(record.get(key), kind):
        right = "a text" if kind is str else "a list"
        raise UserError(f"{where}: {key} is {quoted(record.get(key))}; {right} is right")
    return record[key]
