"""The severed model (Meng et al. 2022, section 2.2, Figure 3, and Appendix B): what a restored hidden state does
without the MLPs, or without the attention, of its own token.

The clean hidden state is put back at token t after block l, as in tracing, while every MLP (or attention) output of
that token is held at what it was in the corrupted run. Blocks up to l lie below the restored state and give these
values anyhow, so what is cut is the way from the state through the modules of token t above l; other tokens run as they
would. effect(t, l) = p*(restored, severed) - p*, with the same p* as without severing: where a module takes no part,
severing it changes nothing.

The corrupted outputs are those of the noise draws that the restoration runs under, draw by draw. (The published
notebook, causal_trace_frozen_mlp_attn, draws anew for the run that it restores in.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.lm.forward import Suffix, as_was, first
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.plain import outputs
from pipeline.lm.prompts import Prompt
from pipeline.locate.tracing import FactTrace
from pipeline.settings.fields import SEVERED


class SeveredTrace(FactTrace):
    """`FactTrace` of hidden states, one block each, with the outputs of `severed` (mlp or attn) held at the token."""

    def __init__(self, lm: LanguageModel, prompt: Prompt, noise: NoiseTable, samples: int, severed: str):
        if severed not in SEVERED:
            raise ValueError(f"severed is {severed!r} but must be one of {', '.join(SEVERED)}")
        super().__init__(lm, prompt, noise, samples)
        self.severed = severed

    def _climb(self, suffix: Suffix, sites: Tensor, module: str, window: int, layers: range) -> Tensor:
        """Last-block outputs of the rows (layer, sample), layers outermost, each with its token's modules held.

        A row joins above its restored block, so all rows in a block are held there: (R, S, d), R = rows / samples.
        """
        _hidden_only(module, window)
        recorded = {"mlp": self.corrupt.mlp_out, "attn": self.corrupt.attn_out}[self.severed]
        origin = suffix.origin[sites]

        def hold(layer: int) -> Callable[..., Any]:
            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
                whole = first(output)
                shaped = whole.reshape(-1, self.samples, len(suffix.origin), whole.shape[-1])
                shaped[:, :, sites.to(whole.device)] = recorded[layer][:, origin].to(whole.device)
                return as_was(output, shaped.reshape(whole.shape))

            return hook

        with ExitStack() as stack:
            for layer, target in enumerate(self._modules(self.severed)):
                stack.callback(target.register_forward_hook(hold(layer)).remove)
            return super()._climb(suffix, sites, module, window, layers)

    @cached_property
    def _clean_states(self) -> list[Tensor]:
        """Clean outputs of the blocks, (T, d), by the model's own forward."""
        return outputs(self.lm, self.prompt, self._modules("hidden"))

    @cached_property
    def _corrupt_outputs(self) -> list[Tensor]:
        """Corrupted outputs of the severed modules, (samples, T, d), by the model's own forward."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            whole = first(output)  # a copy, as Falcon adds its attention to the MLP's output in place
            found.append(whole.clone().reshape(self.samples, -1, whole.shape[-1]))

        with ExitStack() as stack:
            for target in self._modules(self.severed):
                stack.callback(target.register_forward_hook(keep).remove)
            self._plain_readings(corrupted=True)
        return found

    @torch.no_grad()
    def plain_cells(self, module: str, window: int, token: int, layer: int) -> np.ndarray:
        """The reference: one cell by whole forwards of all samples, every module of the token held, whatever its
        block; the mean restored probability, (1,).
        """
        _hidden_only(module, window)

        # Both are run before any hook is there.
        clean, corrupt = self._clean_states[layer][token], [output[:, token] for output in self._corrupt_outputs]
        with ExitStack() as stack:
            stack.callback(self._modules("hidden")[layer].register_forward_hook(self._put(token, clean)).remove)
            for target, value in zip(self._modules(self.severed), corrupt, strict=True):
                stack.callback(target.register_forward_hook(self._put(token, value)).remove)
            return self._plain_readings(corrupted=True)


def _hidden_only(module: str, window: int) -> None:
    if (module, window) != ("hidden", 1):
        raise ValueError(f"the severed model restores one hidden state, not {module} over {window} blocks")
