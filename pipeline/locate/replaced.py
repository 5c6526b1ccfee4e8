"""What a model says when the MLP outputs of a window of blocks are replaced at the subject: by those of the same prompt
in another model, the one before an edit, or by zeros.

The question behind it is in Hase et al. 2023's discussion of their results: an edit at one block may override what
sits at another. p(replaced) is measured without noise, for every window: replacing at the blocks around l changes
nothing below them, so the fast path runs only the tokens from the first replaced one on, and the windows of all layers
climb together. In a model edited at block k, MLP outputs below k are those of the unedited model: putting these in
changes nothing there, and putting them in at k undoes the edit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.lm.forward import Recording, Suffix, climb, log_probabilities, record
from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.plain import Batch, outputs, target_probabilities
from pipeline.lm.prompts import Prompt, pack


class SubjectMlps:
    """One text followed by several targets, with the MLP outputs that the model, as it is now, gives for it.

    prompts: the same text and subject, each with a target. Whoever edits the model makes another one of these within
    the edit. p: (P,) probability of each target. The path is the model's (`lm.fast`).
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Prompt]):
        self.lm, self.prompts = lm, tuple(prompts)
        self.packed = pack([prompt.ids[:-1] for prompt in prompts])
        self.recording: Recording | None = record(lm, self.packed) if lm.fast else None
        self.plain_outputs: list[list[Tensor]] = []  # of each prompt, L tensors (T, d)
        if self.recording is not None:
            reads = [torch.tensor(self._nodes(prompt, prompt.reads), device=lm.device) for prompt in self.prompts]
            self.p = self._read(self.recording.h[-1], reads)[0]
        else:
            self.plain_outputs = [outputs(lm, prompt, lm.arch.mlp_ends) for prompt in self.prompts]
            self.p = self._plain_probabilities()

    def replaced(
        self,
        window: int,
        source: SubjectMlps | None,
        *,
        whole_subject: bool = False,
        rows: Callable[[Suffix], int] | None = None,
    ) -> np.ndarray:
        """Probabilities (P, L) with the MLP outputs of the `window` blocks centred on each layer replaced.

        source: whose outputs are put in their place, of the same prompts; None for zeros. whole_subject: at all of the
        subject's tokens, not its last alone. rows: how many layers may run at once, None for all.
        """
        if source is not None and source.prompts != self.prompts:
            raise ValueError("outputs of other prompts can't be put in")
        if self.recording is None:
            layers = range(self.lm.n_layers)
            return np.stack([self._plain(window, source, whole_subject, layer) for layer in layers], 1)
        return self._fast(window, source, whole_subject, rows)

    def _nodes(self, prompt: Prompt, tokens: Sequence[int]) -> list[int]:
        """Packed indices of a prompt's tokens."""
        path = self.packed.where[self.prompts.index(prompt)]
        return [path[token] for token in tokens]

    def _read(self, hidden: Tensor, reads: Sequence[Tensor]) -> np.ndarray:
        """Probability of each target, (R, P), from last-block outputs (R, S, d) and where among these it is read."""
        found = []
        for prompt, at in zip(self.prompts, reads, strict=True):
            targets = torch.tensor(prompt.target_ids, device=hidden.device).expand(len(hidden), -1)
            found.append(log_probabilities(self.lm, hidden[:, at], targets).double().sum(-1).exp().cpu().numpy())
        return np.stack(found, 1)

    @torch.no_grad()
    def _fast(
        self, window: int, source: SubjectMlps | None, whole_subject: bool, rows: Callable[[Suffix], int] | None
    ) -> np.ndarray:
        lm, recording = self.lm, self.recording
        assert recording is not None
        nodes = sorted(
            {node for prompt in self.prompts for node in self._nodes(prompt, _tokens(prompt, whole_subject))}
        )
        suffix = Suffix.after(recording, range(nodes[0], len(self.packed)))
        sites = torch.tensor(nodes, device=lm.device) - nodes[0]
        reads = [
            torch.tensor(self._nodes(prompt, prompt.reads), device=lm.device) - nodes[0] for prompt in self.prompts
        ]
        put = [
            torch.zeros(len(nodes), lm.arch.width, dtype=lm.dtype, device=lm.device)
            if source is None or source.recording is None
            else source.recording.mlp_out[layer][0, nodes]
            for layer in range(lm.n_layers)
        ]
        size = lm.n_layers if rows is None else rows(suffix)
        found = []
        for low in range(0, lm.n_layers, size):
            layers = range(low, min(lm.n_layers, low + size))
            hidden = self._climbed(suffix, sites, put, [window_range(layer, window, lm.n_layers) for layer in layers])
            found.append(self._read(hidden, reads))
        return np.concatenate(found).T

    def _climbed(self, suffix: Suffix, sites: Tensor, put: Sequence[Tensor], spans: Sequence[range]) -> Tensor:
        """Last-block outputs (R, S, d), a row for each span of blocks, in their order; put: L tensors (sites, d)."""
        lm, recording = self.lm, suffix.recording
        origin = suffix.origin[sites]

        def join(at: int) -> tuple[Tensor, None] | None:
            count = sum(span.start + 1 == at for span in spans)
            if not count:
                return None
            h, added = suffix.live(recording.h[at]), partial(lm.arch.mlp_to_residual, at - 1)
            change = added(put[at - 1]) - added(recording.mlp_out[at - 1][0, origin])
            return h.index_add(1, sites, change[None]).repeat(count, 1, 1), None

        def hold(layer: int) -> Callable[..., Any]:
            """A hook that replaces the output in the rows that are in their window; their first block is in `join`."""
            held = [r for r, span in enumerate(spans) if span.start + 1 <= layer < span.stop]

            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
                if not held:
                    return None
                shaped = output.reshape(-1, len(suffix.origin), output.shape[-1]).clone()
                shaped[held[0] : held[-1] + 1, sites.to(output.device)] = put[layer].to(output)
                return shaped.reshape(output.shape)

            return hook

        with ExitStack() as stack:
            for layer, module in enumerate(lm.arch.mlp_ends):
                stack.callback(module.register_forward_hook(hold(layer)).remove)
            return climb(lm, suffix, spans[0].start + 1, join)

    def _plain_probabilities(self) -> np.ndarray:
        return target_probabilities(self.lm, Batch.of(self.prompts, self.lm.device)).cpu().numpy()

    @torch.no_grad()
    def _plain(self, window: int, source: SubjectMlps | None, whole_subject: bool, layer: int) -> np.ndarray:
        """The reference, (P,): whole prompts by the model's own forward, with hooks."""

        def hold(at: int) -> Callable[..., Any]:
            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor:
                shaped = output.reshape(len(self.prompts), -1, output.shape[-1]).clone()
                for p, prompt in enumerate(self.prompts):
                    tokens = _tokens(prompt, whole_subject)
                    shaped[p, tokens] = 0.0 if source is None else source.plain_outputs[p][at][tokens].to(output)
                return shaped.reshape(output.shape)

            return hook

        with ExitStack() as stack:
            for at in window_range(layer, window, self.lm.n_layers):
                stack.callback(self.lm.arch.mlp_ends[at].register_forward_hook(hold(at)).remove)
            return self._plain_probabilities()


def _tokens(prompt: Prompt, whole_subject: bool) -> list[int]:
    """The tokens at which outputs are replaced."""
    assert prompt.subject is not None
    return list(range(*prompt.subject)) if whole_subject else [prompt.last_subject]
