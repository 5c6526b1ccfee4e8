"""Loading a causal language model from a folder or the hub, with one sentence for whatever is wrong with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError
from pipeline.lm import hub
from pipeline.lm.cache import place
from pipeline.lm.folders import check_folder, fingerprint, folder_of
from pipeline.lm.model import LanguageModel, wrap


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA if there is one, else Apple's MPS, else the CPU."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"model.device is {wanted!r} but torch {torch.__version__} sees no CUDA device; use auto or cpu"
        )
    return torch.device(wanted)


def is_local(source: str) -> bool:
    """Whether `source` is a folder here and not a hub name."""
    return source.startswith(("/", "./", "../", "~")) or Path(source).exists()


def load(
    source: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    add_bos: bool = False,
    device: str = "auto",
    device_map: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    names: Mapping[str, str | None] | None = None,
) -> LanguageModel:
    """Load a causal language model.

    Parameters
    ----------
    source : a local folder, a hub name, or `cached:NAME` for a model that was made on this machine.
    name : what to call it in messages and results; `source` unless given.
    names : module paths, as in `families.Names`, of a family that is not known by name.
    The others are those of the `model` section of params.yaml, explained there.

    Raises
    ------
    UserError
        For a missing or damaged folder, a hub that cannot be reached, weights that exist only as pickles, an unknown
        family and an encoder.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    name = name or source
    where = place(source)
    local = is_local(where)
    if local:
        where = str(Path(where).expanduser())
        check_folder(Path(where), allow_pickle)
    elif copy := hub.copy_here(where, revision, allow_pickle):
        where, local = str(copy), True
    else:
        hub.knock(where)
    if trust_remote_code:
        print(f"WARNING: model.trust_remote_code runs code that comes with {source}", flush=True)
    common: dict[str, Any] = {
        "revision": revision or "main",
        "trust_remote_code": trust_remote_code,
    }
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **common)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            use_safetensors=None if allow_pickle else True,
            device_map=device_map,
            ignore_mismatched_sizes=True,  # they are told below, by name
            output_loading_info=True,
            **common,
        )
    except Exception as error:  # a damaged file ends in any of a dozen kinds
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise UserError(
                f"model.name {name!r} needs Python code that comes with it, which is not run; "
                "model.trust_remote_code: true would run it, for models that you trust"
            ) from error
        first = (str(error).strip().splitlines() or [""])[0].split(". ")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"model.name {name!r} could not be loaded ({first[:300]}); it must be packaged:NAME, "
            "trained:tiny, a local folder with config.json, tokenizer and safetensors of a causal language model, "
            "or a reachable hub name"
        ) from error
    model, told = loaded
    # transformers would go on with random numbers in their place.
    if wrong := sorted({*told["missing_keys"], *(key[0] for key in told["mismatched_keys"])}):
        raise UserError(
            f"the weights of model.name {name!r} do not fit its config.json: {wrong[0]} is missing or of "
            f"another shape ({len(wrong)} tensors in all); fetch the model again"
        )
    # Greedy text is the model's own likeliest; a chat model's penalties and sampling settings would change it.
    ends = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = transformers.GenerationConfig(**ends)
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {name!r} gives no character offsets; a fast tokenizer is needed")
    if device_map is None:
        model.to(pick_device(device))
    return wrap(
        model,
        tokenizer,
        name=name,
        fingerprint=fingerprint(folder_of(where, local, revision)),
        source=source,
        add_bos=add_bos,
        names=names,
    )
