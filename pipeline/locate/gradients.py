"""Gradients of a target's log-probability in the output of every MLP at every token: one run and one backward pass.

The model's own forward, with hooks, whatever the family: nothing of it is left out by running from the middle, as the
gradient goes through all blocks. To each output a tensor of zeros is added; the gradient is taken in that, so that a
family may go on to change the output in place, and may flatten its tokens. Of log p, which no number format is too
coarse for; the gradient of p is p times that.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.lm.forward import as_was, first
from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch, full_logits


@dataclass(frozen=True)
class Outputs:
    """What a run of B copies of one prompt of T tokens left, each a list of n_layers tensors on the model's device.

    outputs: of each MLP, (B, T, d). gradients: of each copy's log p(target) in it, likewise. log_p: (B,) float64.
    keys: the input of each down-projection, (B, T, d_ff); none where the MLP is experts.
    """

    outputs: list[Tensor]
    gradients: list[Tensor]
    log_p: Tensor
    keys: list[Tensor] = field(default_factory=list)


def gradients(lm: LanguageModel, batch: Batch, noise: Tensor | None = None) -> Outputs:
    """Run copies of one prompt, each with its own noise (B, T, width) on the input embeddings, or none.

    p(target) is the product over its tokens.
    """
    arch, copies = lm.arch, len(batch.prompts)
    outputs: list[Tensor] = []
    zeros: list[Tensor] = []
    keys: list[Tensor] = []

    def by_token(tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(copies, -1, tensor.shape[-1]).to(lm.device, copy=True)

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        whole = first(output)
        outputs.append(by_token(whole))
        if arch.has_down_projs:
            keys.append(by_token(args[0]))
        zeros.append(torch.zeros_like(whole, requires_grad=True))
        return as_was(output, whole + zeros[-1])

    with torch.enable_grad(), ExitStack() as stack:
        for module in arch.mlp_ends:
            stack.callback(module.register_forward_hook(hook).remove)
        logits = full_logits(lm, batch, noise)
        (prompt,) = set(batch.prompts)
        at = logits[:, list(prompt.reads)]
        at = (at if at.dtype == torch.float64 else at.float()).log_softmax(-1)
        targets = torch.tensor(prompt.target_ids, device=at.device).expand(copies, -1)
        log_p = at.gather(-1, targets[..., None])[..., 0].double().sum(-1)
        found = torch.autograd.grad(log_p.sum(), zeros)
    return Outputs(outputs, [by_token(gradient) for gradient in found], log_p.detach().to(lm.device), keys)


def copies_within(lm: LanguageModel, tokens: int, memory: int) -> int:
    """How many copies of a prompt of `tokens` fit into `memory` bytes with what the backward pass needs, at least one.

    Each token keeps about 8 vectors of the residual width and 4 of the MLP's in each block, and its logits, float32,
    with two copies of them.
    """
    arch = lm.arch
    inner = arch.key_size(0) if arch.has_down_projs else 4 * arch.width
    item = torch.empty((), dtype=lm.dtype).element_size()
    token = lm.n_layers * (8 * arch.width + 4 * inner) * item + 3 * 4 * int(arch.config.vocab_size)
    return max(1, memory // (tokens * token))
