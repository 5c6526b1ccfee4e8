"""The editing methods there are. A new one is a file beside this one and an entry here."""

from __future__ import annotations

from pathlib import Path

from pipeline.edit import finetune, rome
from pipeline.edit.protocol import Method
from pipeline.settings import params

METHODS: dict[str, Method] = {method.name: method for method in (rome.METHOD, *finetune.METHODS)}

SETTINGS: dict[str, type] = {name: method.settings for name, method in METHODS.items()}  # as params.load wants them


def load(path: str | Path = "params.yaml") -> params.Params:
    """Read and check a params file with the sections of all methods; UserError as of `params.load`."""
    return params.load(path, SETTINGS)
