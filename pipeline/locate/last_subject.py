"""Causal traces of one token alone, the subject's last, where ROME edits: a row of `FactTrace`'s, at a fraction of its
cost.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pipeline.lm.forward import Suffix
from pipeline.locate.tracing import FactTrace, Trace


class LastSubjectTrace(FactTrace):
    """`FactTrace` in which nothing but the subject's last token is restored.

    It is of the model as it is when it is first asked: a model whose weights were changed since needs another one.
    """

    def _suffix(self) -> tuple[Suffix, list[int], list[list[int]]]:
        token = self.prompt.last_subject
        live = Suffix.after(self.corrupt, range(token, len(self.packed)))
        return live, [0], [[read - token for read in self.reads]]

    def fast(self, module: str, window: int, rows: Callable[[Suffix], int] | None = None) -> Trace:
        """Every layer of one module and window: `restored` is (1, L). rows: as for `FactTrace.fast`."""
        whole = super().fast(module, window, rows)
        return Trace(whole.p_clean, whole.p_corrupt, whole.restored[[self.prompt.last_subject]])

    @torch.no_grad()
    def plain(self, module: str, window: int) -> Trace:
        """The reference, (1, L): nothing but the model's own forward."""
        token = self.prompt.last_subject
        cells = [self.plain_cell(module, window, token, layer) for layer in range(self.lm.n_layers)]
        return Trace(self.p_clean, self.p_corrupt, np.array([cells]))
