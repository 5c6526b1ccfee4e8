"""A model's folder: whether it is whole, and a fingerprint of all in it that can change a number."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from pipeline.errors import UserError


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


# What may stand in a model's folder that decides a number: weights, settings, tokenizer, the model's own code.
_DECIDES = ("*.safetensors", "*.bin", "*.json", "*.model", "*.txt", "*.jinja", "*.py")


def folder_of(source: str, local: bool, revision: str | None) -> Path:
    """The folder of a model that has been loaded: its own, or the hub's copy of it here."""
    if local:
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, revision=revision, local_files_only=True))


def fingerprint(folder: Path) -> str:
    """SHA-256 (32 hex digits) over the names and the content of the model's files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _DECIDES for path in folder.glob(pattern)}):
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
