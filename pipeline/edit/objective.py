"""What a new value is optimised for: equation 4 of Meng et al. 2022.

    NLL of the target + kl_factor * KL(edited || original) on "{subject} is a" + weight_decay * |delta| / |v0|^2

with |delta| <= clamp_norm_factor * |v0|. NLL is the mean over the target's tokens, and over the prompts. Fact erasure
minimises exp(-NLL) in place of the NLL (Hase et al. 2023, appendix): of each prompt, and then the mean over the prompts
(mean_of_exp: the mean probability), or of the mean NLL (exp_of_mean: their geometric mean, as in the published code).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.edit.protocol import EditRequest
from pipeline.lm.model import LanguageModel


class Weights(Protocol):
    """The weights of the objective's terms; a method's settings have them."""

    @property
    def kl_factor(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def erasure_loss(self) -> str: ...


class _TargetLogsAndKL(torch.autograd.Function):
    """`target_logs_and_kl` with its gradient written out: three passes over the vocabulary where autograd makes ten."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        logs = logits.log_softmax(-1)
        reads = logs[:, :-1].gather(-1, targets.expand(len(logs), -1)[..., None])[..., 0]
        kl = (logs[:, -1].exp() * (logs[:, -1] - base)).sum(-1)
        ctx.save_for_backward(logs, targets, base, kl)
        return reads, kl

    @staticmethod
    def backward(ctx: Any, by_reads: Tensor, by_kl: Tensor) -> tuple[Tensor, None, None]:
        logs, targets, base, kl = ctx.saved_tensors
        grad = logs.exp()  # of logits z, p = softmax(z): d log p_t = 1_t - p, and d KL = p (log p - log base - KL)
        grad[:, -1] *= (logs[:, -1] - base - kl[:, None]) * by_kl[:, None]
        grad[:, :-1] *= -by_reads[..., None]
        rows = targets.expand(len(logs), -1)[..., None]
        grad[:, :-1].scatter_add_(-1, rows, by_reads[..., None])
        return grad, None, None


def target_logs_and_kl(logits: Tensor, targets: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (E, R) of targets (R,) after the first R of logits (E, R + 1, V), and (E,) the KL divergence
    of the last from the log-distribution base (V,).
    """
    reads, kl = _TargetLogsAndKL.apply(logits, targets, base)
    return reads, kl


def log_distribution(logits: Tensor) -> Tensor:
    """Log-probabilities (..., V) of logits, in float32 or better."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)


class Objective:
    """Equation 4 for one request, whichever path computed the log-probabilities.

    base: (V,) log-distribution of the unedited model on the essence prompt.
    """

    def __init__(self, request: EditRequest, settings: Weights, base: Tensor):
        self.minimise, self.settings, self.base = request.minimise, settings, base
        # Row p averages the read positions of prompt p: NLL is the mean over the target's tokens, as published.
        counts = [len(prompt.reads) for prompt in request.prompts]
        self.average = torch.zeros(len(counts), sum(counts), dtype=base.dtype, device=base.device)
        start = 0
        for p, count in enumerate(counts):
            self.average[p, start : start + count] = 1 / count
            start += count
        self.targets = torch.tensor([i for p in request.prompts for i in p.target_ids], device=base.device)

    def __call__(self, logits: Tensor, delta: Tensor, v0_norm: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each edit, (E,), and its least target probability over the prompts, (E,).

        logits: (E, reads + 1, V), the essence prompt's last. delta: (E, d). v0_norm: (E,).
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        reads, kl = target_logs_and_kl(logits, self.targets, self.base)
        nll = -(reads @ self.average.T)  # (E, P)
        if not self.minimise:
            fit = nll.mean(-1)
        elif self.settings.erasure_loss == "exp_of_mean":
            fit = torch.exp(-nll.mean(-1))
        else:
            fit = torch.exp(-nll).mean(-1)
        decay = delta.norm(dim=-1) / v0_norm**2
        loss = fit + self.settings.kl_factor * kl + self.settings.weight_decay * decay
        return loss, torch.exp(-nll.detach()).amin(-1)


def reaches(lm: LanguageModel, request: EditRequest, layer: int) -> bool:
    """Whether a change at the subject's last token in block `layer` can reach the target's probability at all.

    After the last block nothing is carried to later tokens. There equation 4 is least at delta = 0, and delta stays
    0; Adam would otherwise walk wherever the rounding of a gradient that is 0 points to.
    """
    return layer < lm.n_layers - 1 or any(prompt.last_subject in prompt.reads for prompt in request.prompts)


def stops(request: EditRequest, stop_loss: float | None, loss: float) -> bool:
    """Whether an edit whose loss is `loss` gets no further update; erasure, whose loss is a probability, goes on."""
    return stop_loss is not None and not request.minimise and loss < stop_loss


def clamp_(delta: Tensor, limit: Tensor) -> None:
    """In place: shorten `delta` to length `limit` where it is longer."""
    norm = delta.norm()
    if norm > limit:
        delta.mul_(limit / norm)
