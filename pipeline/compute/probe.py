"""The text whose loss tells whether an edit disables the model: sampled once, kept beside the second moments.

It is drawn with a seed of its own, so it is neither text that the second moments are of nor a context prefix, at the
model's own temperature 1, so that its loss is near the model's entropy. Every worker reads the same tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.compute.keys import common, key
from pipeline.errors import UserError
from pipeline.lm.generate import sample
from pipeline.lm.model import LanguageModel
from pipeline.seeds import derive
from pipeline.tables import read_record, write_json

if TYPE_CHECKING:
    from pipeline.settings.params import Params

PROBE = "probe.json"
Text = tuple[tuple[int, ...], ...]


def key_of(params: Params, model: dict[str, Any]) -> str:
    """Hash of all that the text depends on."""
    return key(
        **common(params, model, __name__),
        step="probe",
        seed=params.seed,
        tokens=params.edit.text_tokens,
        length=params.statistics.sequence_length,
    )


def present(params: Params, model: dict[str, Any], folder: Path) -> bool:
    """Whether the folder has the text of these settings and this model."""
    try:
        read_for(params, model, folder)
    except UserError:
        return False
    return True


def compute(lm: LanguageModel, params: Params, model: dict[str, Any], folder: Path) -> None:
    """Sample the text and write it."""
    text = sampled(lm, params.edit.text_tokens, params.statistics.sequence_length, params.seed)
    write_json({"key": key_of(params, model), "ids": text}, folder / PROBE)


def sampled(lm: LanguageModel, tokens: int, length: int, seed: int) -> Text:
    """Token ids of pieces of at most `length` tokens, as equal as can be, `tokens` in all; no piece for 0 tokens."""
    if not tokens:
        return ()
    pieces = -(-tokens // length)
    short, longer = divmod(tokens, pieces)
    ids = sample(lm, pieces, short + bool(longer), 1.0, derive(seed, "probe")).tolist()
    return tuple(tuple(piece[: short + (i < longer)]) for i, piece in enumerate(ids))


def read_for(params: Params, model: dict[str, Any], folder: Path) -> Text:
    """The text of the folder, which must be of these settings and this model. Raises UserError."""
    path = folder / PROBE
    record = read_record(path, key=str, ids=list)
    if record["key"] != key_of(params, model):
        raise UserError(f"{path} is of other settings, another model or another version; run `dvc repro statistics`")
    ids = record["ids"]
    whole = all(isinstance(piece, list) and all(type(token) is int for token in piece) for piece in ids)
    if not whole or sum(map(len, ids)) != params.edit.text_tokens:
        raise UserError(
            f"{path} must hold lists of {params.edit.text_tokens} token ids in all but does not; delete it and run "
            "`dvc repro -f statistics`"
        )
    return tuple(map(tuple, ids))
