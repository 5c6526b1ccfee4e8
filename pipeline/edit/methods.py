"""The editing methods there are. A new one is a file beside this one and an entry here."""

from __future__ import annotations

from pathlib import Path

from pipeline.edit import finetune, kn, memit, rome
from pipeline.edit.protocol import Method
from pipeline.settings import params as settings
from pipeline.settings.fields import PROBLEMS
from pipeline.settings.params import Params

METHODS: dict[str, Method] = {
    method.name: method for method in (rome.METHOD, memit.METHOD, *finetune.METHODS, kn.METHOD)
}

SETTINGS: dict[str, type] = {name: method.settings for name, method in METHODS.items()}  # as params.load wants them


def moments_window(params: Params, method: str) -> int:
    """How many blocks around a layer the method needs the second moments of, whatever the problem; 0 for none."""
    if not METHODS[method].moments:
        return 0
    return max(params.for_problem(method, problem).get("window", 1) for problem in PROBLEMS)


def widest_window(params: Params) -> int:
    """`moments_window` of all methods in use, and 1 where none needs any, so that there always are statistics."""
    return max(1, *(moments_window(params, method) for method in params.edit.methods))


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file with the sections of all methods; UserError as of `params.load`."""
    return settings.load(path, SETTINGS)
