"""A language model with its tokenizer, ready to be traced and edited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.lm.families import FAMILIES, Architecture, Names


@dataclass(frozen=True)
class LanguageModel:
    """A model ready to be traced and edited.

    source: the folder, hub name or `cached:NAME` that it came from. fast: whether packed prompts, the resumed forward
    and `arch.logits` are known to give what the model itself says (`forward.proven` finds out); where they are not, its
    own forward is asked.

    Shared and read-only: whoever edits a weight puts it back bit for bit.
    """

    model: Any
    tokenizer: Any
    arch: Architecture
    name: str
    fingerprint: str
    source: str
    add_bos: bool
    fast: bool = False

    @property
    def device(self) -> torch.device:
        return self.arch.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.arch.embedding.weight.dtype

    @property
    def embedding_width(self) -> int:
        """Width of the input embeddings, to which noise is added."""
        return int(self.arch.embedding.weight.shape[1])

    @property
    def n_layers(self) -> int:
        return self.arch.n_layers

    @property
    def body(self) -> Any:
        """The model without its head."""
        return self.model.get_decoder() if hasattr(self.model, "get_decoder") else self.model.base_model

    def describe(self) -> dict[str, Any]:
        """What data/model.json and the report's manifest say of the model."""
        return {
            "name": self.name,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "family": self.arch.config.model_type,
            "layers": self.n_layers,
            "width": self.arch.width,
            "key_size": self.arch.key_size(0) if self.arch.has_down_projs else 0,
            "vocabulary": int(self.arch.config.vocab_size),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "add_bos": self.add_bos,
            "names": asdict(self.arch.names),
        }


def wrap(
    model: Any,
    tokenizer: Any,
    *,
    name: str = "in memory",
    fingerprint: str = "",
    source: str = "",
    add_bos: bool = False,
    names: Mapping[str, str | None] | None = None,
) -> LanguageModel:
    """A LanguageModel around a model that is already in memory; its parameters stop asking for gradients."""
    model_type = model.config.model_type
    if names is not None:
        known = {field.name for field in fields(Names)}
        if wrong := sorted(set(names) - known):
            raise UserError(f"model.names has no entry {wrong[0]!r}; the entries are {', '.join(sorted(known))}")
        family = Names(**names)  # type: ignore[arg-type]
    elif model_type in FAMILIES:
        family = FAMILIES[model_type]
    else:
        raise UserError(
            f"model family {model_type!r} of {name} is not among {', '.join(sorted(FAMILIES))}; "
            "give its module paths as model.names in params.yaml (blocks, attn, mlp, down_proj, final_norm, head)"
        )
    model.eval().requires_grad_(False)
    if add_bos and tokenizer.bos_token_id is None:
        raise UserError(f"model.add_bos is true but the tokenizer of {name} has no BOS token; set it to false")
    return LanguageModel(model, tokenizer, Architecture(model, family), name, fingerprint, source, add_bos)


def window_range(layer: int, window: int, n_layers: int) -> range:
    """The blocks of a window centred on `layer`, to restore or to edit, cut off at the model's ends:
    range(max(0, l - w // 2), min(L, l - (-w // 2))).
    """
    return range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))
