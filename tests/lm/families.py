"""Tiny models with random weights, one a family, built from their configs; nothing is downloaded."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.lm.families import FAMILIES
from pipeline.lm.forward import proven
from pipeline.lm.model import LanguageModel, wrap

WORDS = (
    "The capital of France is Paris. Anna Berg lives in the city of Oslo and works as a painter, "
    "Boris Lund was born in Rome; the official language of Peru is Spanish. One two three four five."
)
SMALL: dict[str, object] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 300}
GATED: dict[str, object] = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 128}
CONFIGS: dict[str, dict[str, object]] = {
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 300, "n_positions": 128},
    "gptj": {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": 300, "rotary_dim": 4, "n_positions": 128},
    "gpt_neox": {**SMALL, "intermediate_size": 64, "max_position_embeddings": 128},
    "opt": {
        **SMALL,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 128,
    },
    "llama": GATED,
    "mistral": GATED,
    "qwen2": GATED,
    "qwen3": {**GATED, "head_dim": 8},
    "olmo2": GATED,
    "gemma2": {**GATED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**GATED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "phi": {**SMALL, "intermediate_size": 64, "max_position_embeddings": 128},
    "phi3": GATED,
    "granite": {**GATED, "logits_scaling": 8.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    "cohere": {**GATED, "logit_scale": 0.25},
    "cohere2": {**GATED, "logit_scale": 0.25},
    "stablelm": GATED,
    "smollm3": GATED,
    "glm4": {**GATED, "head_dim": 8},
    "olmo3": GATED,
    "falcon": {**SMALL, "num_kv_heads": 4},
    "falcon-alibi": {**SMALL, "alibi": True, "num_kv_heads": 4},
    "bloom": {**SMALL},
    "mpt": {"d_model": 32, "n_layers": 4, "n_heads": 4, "vocab_size": 300, "max_seq_len": 128},
    "mixtral": {**GATED, "num_local_experts": 4},
    "qwen3_moe": {**GATED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
EXPERTS = ("mixtral", "qwen3_moe")
EDITED = [family for family in CONFIGS if family not in EXPERTS]
FAST = [family for family in CONFIGS if family not in ("falcon-alibi", "bloom", "mpt")]
FAST_EDITED = [family for family in FAST if family in EDITED]


@functools.cache
def small_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 300 tokens that can write any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([WORDS], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _gptj_attention(
    attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, None]:
    """GPT-J's attention in float64: transformers computes it in float32 whatever the model's type is."""
    weights = query @ key.transpose(-1, -2) / attention.scale_attn
    weights = weights if mask is None else weights + mask
    return weights.softmax(-1) @ value, None


UNLISTED = "unlisted"


def random_model(
    family: str, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 0.2, *, named: bool = False
) -> LanguageModel:
    """A tiny model of `family` whose weights are large enough that layers matter.

    named: as a family that the project does not know, but for the module paths that `model.names` gives.
    """
    options: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "attn_implementation": None}
    options.update(CONFIGS[family])
    options = {key: value for key, value in options.items() if value is not None}
    config = transformers.AutoConfig.for_model(family.split("-")[0], **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        experts = {"experts_implementation": "eager"} if dtype == torch.float64 and family in EXPERTS else {}
        model = transformers.AutoModelForCausalLM.from_config(config, **experts)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, scale)
    if family == "gptj" and dtype == torch.float64:
        for block in model.transformer.h:
            block.attn._attn = functools.partial(_gptj_attention, block.attn)
    names = None
    if named:
        names, model.config.model_type = asdict(FAMILIES[model.config.model_type]), UNLISTED
    return proven(wrap(model.to(dtype), small_tokenizer(), name=f"random {family}", names=names))
