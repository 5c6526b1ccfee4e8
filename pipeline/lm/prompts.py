"""Text to token ids, once: subject spans by the tokenizer's offsets, targets as they continue the prompt, packed
batches.

A prompt and its target are tokenized together, so that the target has its leading space and whatever merges the
tokenizer makes; what belongs to which is read off the character offsets. Several prompts are packed into one
sequence in which a token sees its own prompt only, and prompts that begin alike share their beginning: nothing is
padded and nothing is computed twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """One tokenized prompt, with its target if it has one.

    ids: token ids of prompt and target together (a BOS token first where asked for).
    target_start: index of the target's first token; len(ids) without a target.
    subject: (first, last + 1) token indices of the subject, or None.
    text: what was tokenized, without the target.
    """

    ids: tuple[int, ...]
    target_start: int
    subject: tuple[int, int] | None
    text: str

    @property
    def target_ids(self) -> tuple[int, ...]:
        return self.ids[self.target_start :]

    @property
    def last_subject(self) -> int:
        """Index of the subject's last token."""
        if self.subject is None:
            raise ValueError(f"no subject in {self.text!r}")
        return self.subject[1] - 1

    @property
    def reads(self) -> tuple[int, ...]:
        """Token positions whose next-token distribution gives the target's probability."""
        return tuple(range(self.target_start - 1, len(self.ids) - 1))


def tokenize(
    tokenizer: Any,
    text: str,
    *,
    subject: str | None = None,
    subject_at: int | None = None,
    target: str = "",
    add_bos: bool,
) -> Prompt:
    """Tokenize a prompt, and `target` as its continuation after one space.

    subject_at: character index of the subject in `text`; its first occurrence if None. A subject that does not occur
    raises UserError, as does a target that comes to no tokens or shares a token with the prompt.
    """
    whole = f"{text} {target}" if target else text
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    target_start = len(ids)
    if target and not target.strip():
        raise UserError(f"target {target!r} of prompt {text!r} comes to no tokens; give a target with visible text")
    if target:
        target_start = next((i for i, (_, end) in enumerate(offsets) if end > len(text)), len(ids))
        # A token that is only the space before the target (SentencePiece does this) belongs to the target.
        if target_start == len(ids) or not any(end > len(text) + 1 for _, end in offsets[target_start:]):
            raise UserError(f"target {target!r} of prompt {text!r} comes to no tokens; give a target with visible text")
        if offsets[target_start][0] < len(text):
            raise UserError(
                f"target {target!r} shares a token with the end of prompt {text!r}; end the prompt with a whole word"
            )
        if target_start == 0 and not add_bos:
            raise UserError(f"prompt {text!r} comes to no tokens before its target {target!r}")
    span = None
    if subject is not None:
        start = text.find(subject) if subject_at is None else subject_at
        if start < 0 or not text.startswith(subject, start):
            raise UserError(f"subject {subject!r} does not occur in prompt {text!r}")
        end = start + len(subject)
        covered = [i for i, (a, b) in enumerate(offsets[:target_start]) if a < end and b > start]
        if not covered:
            raise UserError(f"subject {subject!r} comes to no tokens in prompt {text!r}")
        span = (covered[0], covered[-1] + 1)
    if add_bos:
        ids = [tokenizer.bos_token_id, *ids]
        target_start += 1
        span = None if span is None else (span[0] + 1, span[1] + 1)
    return Prompt(tuple(ids), target_start, span, text)


@dataclass(frozen=True)
class Packed:
    """Token sequences packed into one.

    ids, positions: (N,) token ids and position ids. visible: (N, N) bool, row i true at the tokens that i may attend to
    (itself included). where[s][j]: packed index of token j of sequence s. noise: (N,) row of the noise table added
    to the token's embedding, -1 for none.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    where: tuple[tuple[int, ...], ...]
    noise: Tensor

    def __len__(self) -> int:
        return len(self.ids)


def pack(sequences: Sequence[Sequence[int]], noise: Sequence[Sequence[int]] | None = None) -> Packed:
    """Pack token sequences as a prefix tree: sequences that begin alike (noise included) share their beginning.

    noise[s][j]: row of a noise table for token j of sequence s, -1 for none.
    """
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int, int], int] = {}  # (parent, token id, noise row) -> packed index
    where = []
    for s, sequence in enumerate(sequences):
        parent = -1
        path = []
        for j, token in enumerate(sequence):
            row = -1 if noise is None else noise[s][j]
            node = children.get((parent, token, row))
            if node is None:
                node = children[parent, token, row] = len(ids)
                ids.append(token)
                positions.append(j)
                rows.append(row)
                parents.append(parent)
            path.append(node)
            parent = node
        where.append(tuple(path))
    visible = torch.eye(len(ids), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
    return Packed(torch.tensor(ids), torch.tensor(positions), visible, tuple(where), torch.tensor(rows))


def beside(parts: Sequence[Packed]) -> Packed:
    """Packed sequences one after the other: no token sees those of another part, though they may begin alike.

    Each part's rows of noise are taken to follow those of the part before.
    """
    starts = list(itertools.accumulate((len(part) for part in parts[:-1]), initial=0))
    rows, noise = 0, []
    for part in parts:
        noise.append(torch.where(part.noise >= 0, part.noise + rows, part.noise))
        rows += int(part.noise.max()) + 1
    where = [tuple(i + start for i in path) for part, start in zip(parts, starts, strict=True) for path in part.where]
    return Packed(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.positions for part in parts]),
        torch.block_diag(*(part.visible for part in parts)),
        tuple(where),
        torch.cat(noise),
    )
