"""The statistics folder: second moments, context prefixes and where they come from."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.compute import text_job
from pipeline.compute.keys import common, key
from pipeline.disk import digest
from pipeline.edit import contexts, text
from pipeline.edit.moments import MOMENTS, condition_number, second_moments
from pipeline.errors import UserError
from pipeline.lm.folders import check_safetensors
from pipeline.lm.model import LanguageModel, window_range
from pipeline.progress import say, track
from pipeline.tables import write_json

if TYPE_CHECKING:
    from pipeline.settings.params import Params

CONTEXTS, MANIFEST = "contexts.json", "manifest.json"


def source_key(params: Params, model: dict[str, Any]) -> str:
    """Hash of all that the moment of any one block, and the prefixes, depend on."""
    file = params.statistics.text_file
    return key(
        **common(params, model, __name__, text_job.__name__),
        step="statistics",
        seed=params.seed,
        settings=params.statistics.model_dump(exclude={"ridge"}),
        text=digest(file) if file is not None and file.is_file() else None,
    )


def blocks(params: Params, n_layers: int, window: int) -> list[int]:
    """The blocks that edits of `window` blocks change, at every layer that is edited."""
    layers = params.edit.layer_list(n_layers)
    return sorted({block for layer in layers for block in window_range(layer, window, n_layers)})


def key_of(params: Params, model: dict[str, Any], window: int) -> str:
    """Hash of all that the folder's content depends on."""
    return key(source=source_key(params, model), blocks=blocks(params, model["layers"], window))


def present(folder: Path, wanted: str) -> bool:
    """Whether the folder is whole and holds what `wanted`, a key, stands for."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["key"] == wanted and manifest["moments_sha256"] == digest(folder / MOMENTS))
    except (OSError, ValueError, KeyError):
        return False


def compute(
    lm: LanguageModel,
    params: Params,
    folder: Path,
    model: dict[str, Any],
    window: int,
    batches: Sequence[Tensor] | None = None,
) -> None:
    """Take all second moments in one pass over the text, sample the prefixes; write the folder.

    model: what data/model.json says of `lm`. window: how many blocks an edit changes at the most. batches: the text's
    token ids, each (B, T); where they are None, it is sampled or read here.
    """
    settings, layers = params.statistics, blocks(params, lm.n_layers, window)
    size = max(lm.arch.key_size(layer) for layer in layers)
    prefixes = contexts.context_prefixes(
        lm, settings.prefix_lengths, settings.prefixes_per_length, settings.temperature, params.seed
    )
    if batches is None:
        with track(settings.tokens, "text", "tokens") as progress:
            batches = text.text_batches(
                lm,
                settings.text,
                settings.tokens,
                settings.sequence_length,
                settings.temperature,
                params.seed,
                progress.advance,
            )
    tokens = sum(batch.numel() for batch in batches)
    if tokens < 2 * size:
        say(f"warning: {tokens} tokens are few for second moments of size {size}; raise statistics.tokens")
    with track(tokens, "second moments", "tokens") as progress:
        moments = second_moments(lm, batches, layers, progress.advance)
    condition_numbers: dict[str, float | None] = {}
    manifest: dict[str, Any] = {
        "key": key_of(params, model, window),
        "source_key": source_key(params, model),
        "text": settings.text,
        "tokens": tokens,
        "seed": params.seed,
        "condition_numbers": condition_numbers,
        "prefixes": len(prefixes),
    }
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({str(layer): moment.contiguous() for layer, moment in moments.items()}, temporary / MOMENTS)
        write_json(prefixes, temporary / CONTEXTS)
        with track(len(layers), "condition numbers", "blocks") as progress:
            for layer in layers:
                number = condition_number(moments[layer])
                # To 6 digits, as the last ones depend on the number of threads. JSON has no infinity; null says
                # that the matrix is singular.
                condition_numbers[str(layer)] = float(f"{number:.6g}") if number != float("inf") else None
                progress.advance()
        write_json(manifest | {"moments_sha256": digest(temporary / MOMENTS)}, temporary / MANIFEST)
        folder.mkdir(exist_ok=True)
        for name in (MOMENTS, CONTEXTS, MANIFEST):  # the manifest last: until then `present` says no
            os.replace(temporary / name, folder / name)
    except OSError as error:
        raise UserError(f"{folder} could not be written ({error.strerror}); free space or make it writable") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(manifest, context prefixes); UserError where the folder is not whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        prefixes = json.loads((folder / CONTEXTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is missing or damaged ({error}); run `dvc repro statistics`") from error
    texts = isinstance(prefixes, list) and all(isinstance(prefix, str) for prefix in prefixes)
    keyed = isinstance(manifest, dict) and all(isinstance(manifest.get(k), str) for k in ("key", "source_key"))
    if not (folder / MOMENTS).exists() or not keyed or not texts or prefixes[:1] != [""]:
        raise UserError(f"{folder} is not whole or of another version; run `dvc repro -f statistics`")
    return manifest, tuple(prefixes)


def check_moments(folder: Path, layers: Sequence[int], size: int) -> None:
    """Raise UserError unless the file of second moments is whole and has a (size, size) one for each of `layers`.

    Only its header is read.
    """
    path = folder / MOMENTS
    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
        for layer in layers:
            if str(layer) not in there:
                raise UserError(f"{path} has no block {layer} (counted from 0); run `dvc repro -f statistics`")
            shape = file.get_slice(str(layer)).get_shape()
            if shape != [size, size]:
                raise UserError(
                    f"{path} has a second moment of shape {shape} for block {layer}, but the model's keys have "
                    f"size {size}; run `dvc repro -f statistics`"
                )


def read_for(
    params: Params, model: dict[str, Any], folder: Path, window: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(manifest, context prefixes) of the folder, which must be of these settings and this model, and have a moment for
    each block that edits of `window` blocks change; 0 for none.

    Raises UserError.
    """
    manifest, prefixes = read(folder)
    if manifest["source_key"] != source_key(params, model):
        raise UserError(f"{folder} is of other settings, another model or another version; run `dvc repro statistics`")
    check_moments(folder, blocks(params, model["layers"], window) if window else [], model["key_size"])
    return manifest, prefixes
