"""Uncentred second moments C = E[k kT] of the keys of every block, in one pass over the text.

ROME's u = C^-1 k* (Meng et al. 2022, equation 2 and appendix A) needs C at the edited block. One run of the text
through the blocks feeds all of them: each chunk adds kTk to float32 or float64 sums; the head is never computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.lm.model import LanguageModel

MOMENTS = "moments.safetensors"  # of a statistics folder: the second moment of each block, by its number


class SecondMoment:
    """A running mean of k kT over tokens, kept as a sum in `dtype` (float32 or float64)."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        self.sum = torch.zeros(size, size, dtype=dtype, device=device)
        self.count = 0

    def add(self, keys: Tensor) -> None:
        """keys: (tokens, size)."""
        assert keys.shape[1:] == self.sum.shape[:1], keys.shape
        keys = keys.to(self.sum)
        self.sum.addmm_(keys.T, keys)
        self.count += len(keys)

    def mean(self) -> Tensor:
        """(size, size)"""
        if not self.count:
            raise ValueError("no token was added")
        return self.sum / self.count


@torch.no_grad()
def second_moments(
    lm: LanguageModel,
    batches: Iterable[Tensor],
    layers: Sequence[int],
    progress: Callable[[int], Any] = lambda n: None,
) -> dict[int, Tensor]:
    """C of each of `layers`, (d_ff, d_ff) float32 on the CPU, from batches of token ids (B, T) without padding.

    progress: told how many tokens each batch held.
    """
    dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
    moments = {layer: SecondMoment(lm.arch.key_size(layer), dtype, lm.device) for layer in layers}

    def feed(layer: int) -> Callable[..., None]:
        return lambda _module, args: moments[layer].add(args[0].reshape(-1, args[0].shape[-1]))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(lm.arch.down_projs[layer].register_forward_pre_hook(feed(layer)).remove)
        for batch in batches:
            lm.body(input_ids=batch.to(lm.device), use_cache=False)
            progress(batch.numel())
    return {layer: moment.mean().cpu() for layer, moment in moments.items()}


class Whitener:
    """Solves C x = k in float64 for one block's C (size, size), with `ridge` times C's mean diagonal added to it.

    Raises UserError where C is not positive definite: too few tokens for its size, and no ridge.
    """

    def __init__(self, moment: Tensor, ridge: float = 0.0, name: str = "the second moment"):
        matrix = moment.double()
        if ridge:
            matrix = matrix + ridge * matrix.diagonal().mean() * torch.eye(
                len(matrix), dtype=torch.float64, device=matrix.device
            )
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) or not torch.isfinite(factor).all():
            raise UserError(f"{name} is singular; raise statistics.tokens or set statistics.ridge above 0")
        self.factor = factor

    def solve(self, keys: Tensor) -> Tensor:
        """keys: (..., size); C^-1 keys, float64."""
        flat = keys.reshape(-1, keys.shape[-1]).double()
        return torch.cholesky_solve(flat.T, self.factor).T.reshape(keys.shape)


class Whiteners:
    """The whitener of each block, made when it is first asked for.

    moment: gives a block's second moment, as `Resources` has it. ridge: as for `Whitener`.
    """

    def __init__(self, moment: Callable[[int], Tensor], ridge: float):
        self._moment, self._ridge = moment, ridge
        self._made: dict[int, Whitener | UserError] = {}

    def of(self, block: int) -> Whitener:
        """Raises UserError, each time, where the block has no second moment or a singular one."""
        if block not in self._made:
            try:
                self._made[block] = Whitener(self._moment(block), self._ridge, f"the second moment of block {block}")
            except UserError as error:
                self._made[block] = error
        made = self._made[block]
        if isinstance(made, UserError):
            raise made
        return made


def condition_number(moment: Tensor) -> float:
    """Largest over smallest eigenvalue of a symmetric matrix; infinite where the smallest is not above 0."""
    values = torch.linalg.eigvalsh(moment.double())
    return float(values[-1] / values[0]) if values[0] > 0 else float("inf")
