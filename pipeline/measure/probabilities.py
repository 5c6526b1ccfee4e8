"""Probabilities of a fact's targets before and after edits, on its rewrite, paraphrase and neighborhood prompts, and of
its subject on the reverse prompt, about the target.

All prompts and both targets of a fact are packed into one sequence that shares common beginnings. The fast path
touches no weight and runs what lies above the edits only (pipeline.measure.edited). The plain path changes the weights,
runs whole prompts, and puts the weights back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pipeline.edit.protocol import Edit
from pipeline.facts.fact import Fact
from pipeline.lm.forward import Recording, Suffix, record
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.plain import Batch, target_probabilities
from pipeline.lm.prompts import Prompt, pack, tokenize
from pipeline.measure.collapse import Harm
from pipeline.measure.edited import applied, outputs


@dataclass(frozen=True)
class Question:
    """One prompt whose two targets are measured. kind: rewrite, paraphrase, neighborhood or reverse; draws: noise
    draws averaged. In a reverse question both targets are the subject, after prompts about target and baseline.
    """

    kind: str
    index: int
    target: Prompt
    baseline: Prompt
    draws: tuple[int, ...]  # () means that the prompt is not noised


def questions(lm: LanguageModel, fact: Fact, target: str, baseline: str, draws: int) -> list[Question]:
    """The prompts of `fact`; with draws > 0 the subject of rewrite and paraphrase prompts is noised that many times.

    The reverse prompt asks for the subject and is never noised. It comes last: what others share is packed as without.
    """

    def ask(kind: str, index: int, text: str, subject: str | None, at: int | None = None) -> Question:
        if subject is not None and subject not in text:
            subject = None  # a paraphrase may name the subject otherwise; then there is nothing to noise
        pair = [
            tokenize(lm.tokenizer, text, subject=subject, subject_at=at, target=t, add_bos=lm.add_bos)
            for t in (target, baseline)
        ]
        return Question(kind, index, pair[0], pair[1], tuple(range(draws)) if subject is not None else ())

    def ask_back() -> Question:
        pair = [
            tokenize(lm.tokenizer, fact.reversed(known), target=fact.subject, add_bos=lm.add_bos)
            for known in (target, baseline)
        ]
        return Question("reverse", 0, pair[0], pair[1], ())

    texts = {"rewrite": (fact.text,), "paraphrase": fact.paraphrases, "neighborhood": fact.neighborhood}
    return [
        ask_back()
        if kind == "reverse"
        else ask(
            kind,
            index,
            texts[kind][index],
            None if kind == "neighborhood" else fact.subject,
            fact.subject_at if kind == "rewrite" else None,
        )
        for kind, index in prompt_kinds(fact)
    ]


class Measurement:
    """A fact's questions, and what edits make of their probabilities."""

    def __init__(self, lm: LanguageModel, asked: Sequence[Question], noise: NoiseTable | None):
        self.lm, self.asked, self.noise = lm, list(asked), noise
        sequences: list[tuple[int, ...]] = []
        rows: list[list[int]] = []
        runs: list[tuple[int, Prompt]] = []  # (slot of the answer, prompt) of each packed sequence
        for q, question in enumerate(self.asked):
            for side, prompt in enumerate((question.target, question.baseline)):
                for draw in question.draws or (-1,):
                    sequences.append(prompt.ids[:-1])
                    noised = noise is not None and draw >= 0
                    rows.append((noise.rows(prompt, draw) if noised and noise else [-1] * len(prompt.ids))[:-1])
                    runs.append((2 * q + side, prompt))
        self.packed = pack(sequences, rows)
        nodes = sorted(
            {path[j] for path, (_, prompt) in zip(self.packed.where, runs, strict=True) for j in prompt.reads}
        )
        place = {node: i for i, node in enumerate(nodes)}
        self.nodes = torch.tensor(nodes, device=lm.device)
        self.lookups = [
            (slot, [place[path[j]] for j in prompt.reads], list(prompt.target_ids))
            for path, (slot, prompt) in zip(self.packed.where, runs, strict=True)
        ]

    @cached_property
    def recording(self) -> Recording:
        """The unedited run of all questions at once, which the fast path goes on from."""
        return record(self.lm, self.packed, noise=None if self.noise is None else self.noise.table[None])

    @torch.no_grad()
    def _answers(self, hidden: Tensor) -> np.ndarray:
        """Probabilities (R, questions, 2) from last-block outputs at the read nodes (R, nodes, d)."""
        flat = [(i, t) for _, reads, targets in self.lookups for i, t in zip(reads, targets, strict=True)]
        at = torch.tensor([i for i, _ in flat], device=hidden.device)
        token = torch.tensor([t for _, t in flat], device=hidden.device)
        logits = self.lm.arch.logits(hidden)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logs = (logits[:, at, token] - logits.logsumexp(-1)[:, at]).double().cpu().numpy()
        answers = np.zeros((len(hidden), 2 * len(self.asked)))
        counts = np.zeros(2 * len(self.asked))
        start = 0
        for slot, reads, _ in self.lookups:
            answers[:, slot] += np.exp(logs[:, start : start + len(reads)].sum(1))
            counts[slot] += 1
            start += len(reads)
        return (answers / counts).reshape(len(hidden), len(self.asked), 2)

    def before(self) -> np.ndarray:
        """Probabilities of target and baseline before any edit: (questions, 2)."""
        if not self.lm.fast:
            return self.plain(None)
        return self._answers(self.recording.h[-1][:, self.nodes])[0]

    def after(self, edits: Sequence[Edit], rows: Callable[[Suffix], int] | None = None) -> np.ndarray:
        """The same after each edit: (E, questions, 2), NaN for an edit that failed; no weight is touched."""
        result = np.full((len(edits), len(self.asked), 2), np.nan)
        result[[edit.status == "ok" for edit in edits]] = self.before()  # where an edit changes nothing
        for chosen, hidden in outputs(self.lm, self.recording, edits, rows):
            result[chosen] = self._answers(hidden[:, self.nodes])
        return result

    def plain(self, edit: Edit | None) -> np.ndarray:
        """The reference, one edit in the weights (None for no edit) and whole prompts: (questions, 2)."""
        result = np.zeros((len(self.asked), 2))
        with applied(self.lm, edit):
            prompts: list[Prompt] = []
            rows: list[list[int]] = []
            slots: list[tuple[int, int]] = []
            for q, question in enumerate(self.asked):
                for side, prompt in enumerate((question.target, question.baseline)):
                    for draw in question.draws or (-1,):
                        prompts.append(prompt)
                        rows.append(
                            self.noise.rows(prompt, draw) if self.noise and draw >= 0 else [-1] * len(prompt.ids)
                        )
                        slots.append((q, side))
            batch = Batch.of(prompts, self.lm.device)
            noise = None if self.noise is None else batch.noise(self.noise.table, rows)
            for (q, side), p in zip(slots, target_probabilities(self.lm, batch, noise).tolist(), strict=True):
                result[q, side] += p / max(1, len(self.asked[q].draws))
        return result


def prompt_kinds(fact: Fact) -> list[tuple[str, int]]:
    """(kind, index) of the prompts that `questions` asks of `fact`, in its order."""
    counted = (
        ("rewrite", 1),
        ("paraphrase", len(fact.paraphrases)),
        ("neighborhood", len(fact.neighborhood)),
        ("reverse", int(bool(fact.reverse))),
    )
    return [(kind, i) for kind, count in counted for i in range(count)]


def edit_frame(
    fact: Fact, problem: str, method: str, window: int, target: str, baseline: str,
    before: np.ndarray, edits: Sequence[Edit], after: np.ndarray, harm: Harm,
) -> pd.DataFrame:  # fmt: skip
    """data/edits/<method>-<problem>.parquet's rows of one fact, layers outermost, but for `update_key`.

    before: (questions, 2), after: (E, questions, 2) probabilities of target and baseline, of the subject where
    prompt_kind is reverse. harm: of the same edits.
    """
    kinds = prompt_kinds(fact)
    rows = [
        {
            "fact_id": fact.fact_id,
            "problem": problem,
            "method": method,
            "window": window,
            "layer": edit.layer,
            "prompt_kind": kind,
            "prompt_index": index,
            "target": target,
            "p_pre": before[q, 0],
            "p_post": after[e, q, 0],
            "baseline": baseline,
            "p_baseline_pre": before[q, 1],
            "p_baseline_post": after[e, q, 1],
            "delta_norm": edit.delta_norm,
            "steps": edit.steps,
            "loss": edit.loss,
            "status": edit.status,
            "acts": edit.acts,
            "denominator": edit.denominator,
            "update_norm": harm.update_norm[e],
            "text_loss_pre": harm.text_loss_pre,
            "text_loss_post": harm.text_loss_post[e],
        }
        for e, edit in enumerate(edits)
        for q, (kind, index) in enumerate(kinds)
    ]
    return pd.DataFrame(rows)
