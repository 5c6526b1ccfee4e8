"""How likely given texts are to a model under edits: the negative log-likelihoods of their tokens, in nats.

One recording of the unedited model serves all edits, which climb in one batch (pipeline.measure.edited); the plain path
puts each edit into the weights and is what the fast one is held to. What is made of a text's numbers, a mean or a
perplexity, is a subclass's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.edit.protocol import Edit
from pipeline.lm.forward import Recording, Suffix, log_probabilities, record
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import pack
from pipeline.measure.edited import applied, outputs


class Likelihood(ABC):
    """A number for given texts, from the negative log-likelihood of each text's tokens but its first ones.

    sequences: token ids of each text. given: how many of its first tokens are taken for granted, at least one; each
    text has more.
    """

    def __init__(self, lm: LanguageModel, sequences: Sequence[Sequence[int]], given: int = 1):
        self.lm, self.given = lm, given
        self.sequences = [list(ids) for ids in sequences]
        self.packed = pack([ids[:-1] for ids in self.sequences])
        reads = [node for path in self.packed.where for node in path[given - 1 :]]
        self.reads = torch.tensor(reads, device=lm.device)
        self.targets = torch.tensor([token for ids in self.sequences for token in ids[given:]], device=lm.device)

    @abstractmethod
    def reduce(self, losses: Tensor) -> Tensor:
        """The number (R,) of each row of the losses (R, n), float64: all texts' tokens, one text after the other."""

    @cached_property
    def recording(self) -> Recording:
        """The unedited run of all texts, which all edits go on from."""
        return record(self.lm, self.packed)

    @torch.no_grad()
    def _numbers(self, hidden: Tensor, head_rows: int | None) -> np.ndarray:
        """`reduce` of last-block outputs (R, N, d); the head is run on `head_rows` tokens at a time, None for all."""
        read = hidden[:, self.reads].flatten(0, 1)
        targets = self.targets.repeat(len(hidden))
        size = head_rows or len(read)
        logs = [
            log_probabilities(self.lm, rows, tokens)
            for rows, tokens in zip(read.split(size), targets.split(size), strict=True)
        ]
        return self.reduce(-torch.cat(logs).double().reshape(len(hidden), -1)).cpu().numpy()

    def before(self, head_rows: int | None = None) -> float:
        """The number without an edit."""
        return float(self._numbers(self.recording.h[-1], head_rows)[0]) if self.lm.fast else self.plain(None)

    def after(
        self,
        edits: Sequence[Edit],
        before: float,
        rows: Callable[[Suffix], int] | None = None,
        head_rows: int | None = None,
    ) -> np.ndarray:
        """The number after each edit: (E,), NaN for one that failed; no weight is touched.

        before: that of an edit that changes nothing. rows: edits of a batch, head_rows: tokens of a batch of the head;
        None for all at once. What is no number is infinite.
        """
        result = np.array([before if edit.status == "ok" else np.nan for edit in edits])
        for chosen, hidden in outputs(self.lm, self.recording, edits, rows):
            result[chosen] = np.nan_to_num(self._numbers(hidden, head_rows), nan=np.inf, posinf=np.inf)
        return result

    @torch.no_grad()
    def plain(self, edit: Edit | None) -> float:
        """The reference: the edit in the weights (None for no edit), and the model's own forward, a text at a time."""
        if edit is not None and edit.status != "ok":
            return float("nan")
        losses = []
        with applied(self.lm, edit):
            for ids in self.sequences:
                tokens = torch.tensor([ids], device=self.lm.device)
                logits = self.lm.model(input_ids=tokens[:, :-1], use_cache=False).logits[0, self.given - 1 :]
                logits = logits if logits.dtype == torch.float64 else logits.float()
                losses.append(-logits.log_softmax(-1).gather(-1, tokens[0, self.given :, None])[:, 0].double())
        number = float(self.reduce(torch.cat(losses)[None]))
        return float("inf") if number != number else number
