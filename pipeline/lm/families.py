"""Where the parts of each model family live. ALL branching on model families is in this file.

`FAMILIES` maps a Hugging Face `model_type` to module paths; everything else asks `Architecture` for "the
down-projection of block 7" and never which family it has. A family that is not listed works once `model.names` in
params.yaml names its modules. The down-projection is the matrix that ROME edits (Meng et al. 2022, section 3.1:
W_proj, the second layer of the MLP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError


@dataclass(frozen=True)
class Names:
    """Module paths of one family; `attn`, `mlp`, `down_proj` and `mlp_norm` are relative to a block.

    What comes out of `attn` and of `down_proj` (of `mlp` where that is None) has no residual stream in it yet.
    """

    blocks: str
    attn: str
    mlp: str
    down_proj: str | None  # None: the MLP is many experts, and no one map is its last
    final_norm: str
    head: str = "lm_head"
    mlp_norm: str | None = None  # a norm between the MLP's output and the residual stream (Gemma, OLMo 2)


_GPT2 = Names("transformer.h", "attn", "mlp", "mlp.c_proj", "transformer.ln_f")
_LLAMA = Names("model.layers", "self_attn", "mlp", "mlp.down_proj", "model.norm")
_POST_NORM = Names(
    "model.layers", "self_attn", "mlp", "mlp.down_proj", "model.norm", mlp_norm="post_feedforward_layernorm"
)
_EXPERTS = replace(_LLAMA, down_proj=None)
FAMILIES: dict[str, Names] = {
    "gpt2": _GPT2,
    "gptj": Names("transformer.h", "attn", "mlp", "mlp.fc_out", "transformer.ln_f"),
    "gpt_neox": Names("gpt_neox.layers", "attention", "mlp", "mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),
    # OPT has no MLP module: the output of fc2 is the output of the MLP.
    "opt": Names("model.decoder.layers", "self_attn", "fc2", "fc2", "model.decoder.final_layer_norm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "olmo2": _POST_NORM,
    "gemma2": _POST_NORM,
    "gemma3_text": _POST_NORM,
    "olmo3": _POST_NORM,
    "glm4": replace(_LLAMA, mlp_norm="post_mlp_layernorm"),
    "phi": Names("model.layers", "self_attn", "mlp", "mlp.fc2", "model.final_layernorm"),
    "phi3": _LLAMA,
    "granite": _LLAMA,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "stablelm": _LLAMA,
    "smollm3": _LLAMA,
    "falcon": Names("transformer.h", "self_attention", "mlp", "mlp.dense_4h_to_h", "transformer.ln_f"),
    # BLOOM's attention and both its and MPT's MLP add the residual stream themselves, after their last linear map.
    "bloom": Names("transformer.h", "self_attention.dense", "mlp", "mlp.dense_4h_to_h", "transformer.ln_f"),
    "mpt": Names("transformer.blocks", "attn", "ffn", "ffn.down_proj", "transformer.norm_f"),
    "mixtral": _EXPERTS,
    "qwen3_moe": _EXPERTS,
}
# What a family multiplies the head's output with.
_LOGIT_SCALES: dict[str, Callable[[Any], float]] = {
    "granite": lambda config: 1 / config.logits_scaling,
    "cohere": lambda config: config.logit_scale,
    "cohere2": lambda config: config.logit_scale,
}


class Architecture:
    """The parts of one loaded model: blocks, attention, MLP down-projection, embeddings, final norm, head.

    Raises UserError when a named module does not exist in the model.
    """

    def __init__(self, model: Any, names: Names):
        self.model, self.names = model, names
        self.config: Any = model.config
        blocks = self._find(model, names.blocks)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential):
            raise UserError(
                f"model.names.blocks is {names.blocks!r}, which in {type(model).__name__} is no list of blocks "
                f"but {type(blocks).__name__}; give the path of the list"
            )
        self.blocks: list[Any] = list(blocks)
        self.attns: list[Any] = [self._find(block, names.attn) for block in self.blocks]
        # The modules whose output is the MLP's, before any norm.
        self.mlp_ends: list[Any] = [self._find(block, names.down_proj or names.mlp) for block in self.blocks]
        if names.down_proj and any(getattr(getattr(m, "weight", None), "ndim", 0) != 2 for m in self.mlp_ends):
            raise UserError(
                f"model.names.down_proj is {names.down_proj!r}, which in {type(model).__name__} is no linear map "
                f"but {type(self.mlp_ends[0]).__name__}; give the path of the MLP's last linear map"
            )
        self.mlp_norms: list[Any] = [
            None if names.mlp_norm is None else self._find(block, names.mlp_norm) for block in self.blocks
        ]
        self.embedding: Any = model.get_input_embeddings()
        self.final_norm = self._find(model, names.final_norm)
        self.head = self._find(model, names.head)
        self.n_layers = len(self.blocks)
        self._logit_scale = _LOGIT_SCALES.get(self.config.model_type, lambda _config: 1.0)(self.config)

    @staticmethod
    def _find(root: nn.Module, path: str) -> Any:
        found: Any = root
        for part in path.split("."):
            found = getattr(found, part, None)
            if found is None:
                raise UserError(
                    f"{type(root).__name__} has no module {path!r}; set model.names in params.yaml to the paths "
                    f"of {', '.join(field.name for field in fields(Names))}"
                )
        return found

    @property
    def has_down_projs(self) -> bool:
        """Whether each MLP ends in one linear map."""
        return self.names.down_proj is not None

    @property
    def down_projs(self) -> list[Any]:
        """The MLPs' last linear maps, which ROME edits; UserError where there are experts instead."""
        if not self.has_down_projs:
            raise UserError(
                f"an MLP of {type(self.model).__name__} is many experts and has no single down-projection that ROME "
                "could edit; only tracing works with this model"
            )
        return self.mlp_ends

    @property
    def width(self) -> int:
        """Size of the residual stream."""
        return int(self.config.hidden_size)

    def _projected(self) -> bool:
        return getattr(self.config, "word_embed_proj_dim", self.config.hidden_size) != self.config.hidden_size

    @property
    def mlp_adds(self) -> bool:
        """Whether a block's output is its residual stream plus the (possibly normed) MLP output: what the resumed
        forward needs.

        OPT-350m norms after the sum instead.
        """
        return bool(getattr(self.config, "do_layer_norm_before", True)) and not self._projected()

    def mlp_to_residual(self, layer: int, output: Tensor) -> Tensor:
        """What block `layer` adds to the residual stream for this MLP output; shape (..., d) to (..., d)."""
        norm = self.mlp_norms[layer]
        output = output if norm is None else norm(output).to(output.device)
        return output if self.residual_scale == 1.0 else output * self.residual_scale

    def mlp_change(self, layer: int, output: Tensor, change: Tensor) -> Tensor:
        """What `change`, added to this MLP output of block `layer`, adds to the residual stream; all (..., d)."""
        if self.mlp_norms[layer] is None and self.residual_scale == 1.0:
            return change
        return self.mlp_to_residual(layer, output + change) - self.mlp_to_residual(layer, output)

    @property
    def residual_scale(self) -> float:
        """Granite's factor on what a block adds."""
        return float(getattr(self.config, "residual_multiplier", 1.0))

    def key_size(self, layer: int) -> int:
        """Width of the down-projection's input: the size of a ROME key."""
        shape = self.down_projs[layer].weight.shape
        return int(shape[0] if self._transposed(layer) else shape[1])

    def _transposed(self, layer: int) -> bool:
        """GPT-2's Conv1D keeps its weight as (in, out)."""
        return type(self.down_projs[layer]).__name__ == "Conv1D"

    def turned(self, layer: int, stored: Tensor) -> Tensor:
        """A matrix as the down-projection of block `layer` stores its weight, seen as (d, d_ff); and the way back."""
        return stored.T if self._transposed(layer) else stored

    def add_to_weight(self, layer: int, change: Tensor) -> None:
        """In place: W += change, for W and change of shape (d, d_ff) whichever way the family stores W."""
        weight = self.down_projs[layer].weight
        with torch.no_grad():
            weight += self.turned(layer, change).to(weight)

    @contextmanager
    def kept(self, layers: Iterable[int]) -> Iterator[None]:
        """Within, the down-projections of these blocks may be changed; afterwards they are what they were, bit for
        bit.
        """
        saved = {layer: self.down_projs[layer].weight.detach().clone() for layer in layers}
        try:
            yield
        finally:
            for layer, weight in saved.items():
                self.down_projs[layer].weight.data.copy_(weight)

    @contextmanager
    def weight(self, layer: int) -> Iterator[Tensor]:
        """Within: W of block `layer`, (d, d_ff), to be read; fetched where it waits elsewhere until its block runs."""
        from accelerate.utils import align_module_device

        module = self.down_projs[layer]
        with align_module_device(module):
            yield self.turned(layer, module.weight.detach())

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of last-block outputs; shape (..., d) to (..., vocabulary)."""
        logits = self.head(self.final_norm(hidden)).to(hidden.device)
        logits = logits if self._logit_scale == 1.0 else logits * self._logit_scale
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)
