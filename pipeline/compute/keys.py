"""The key of a unit of work: a hash of all that its result depends on, so that it is found again exactly when it would
come out the same.

`common` has what every unit depends on: the model by its content and as it is loaded, the code by its import closure,
and the versions of the libraries that do the arithmetic.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pipeline.closure import code_version
from pipeline.watch import Work

if TYPE_CHECKING:
    from pipeline.settings.params import Params

LIBRARIES = ("torch", "transformers")  # whose next version may round otherwise


def key(**depends_on: Any) -> str:
    """The key (32 hex digits) of a unit that depends on these values, whatever their order.

    Values are text, numbers, booleans, None, and lists, tuples and mappings of such; a tuple counts as a list.
    Raises TypeError for others, ValueError for nan and infinities.
    """
    _check(depends_on, "key")
    text = json.dumps(depends_on, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def common(params: Params, model: Mapping[str, Any], *modules: str) -> dict[str, Any]:
    """What every unit depends on that `modules` compute with the model that data/model.json describes."""
    names, code = params.model.names, code_version(*modules)
    Work.code[" ".join(modules)] = code
    return {
        "model": model["fingerprint"],
        "dtype": params.model.dtype,
        "add_bos": params.model.add_bos,
        "names": None if names is None else names.model_dump(),
        "path": path(params, model),
        "tf32": params.compute.tf32,
        "compile": params.compute.compile,
        "versions": versions(),
        "code": code,
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that do the arithmetic."""
    return {library: version(library) for library in LIBRARIES}


def path(params: Params, model: Mapping[str, Any]) -> str:
    """fast or plain: what params ask for, where the model can be run from the middle."""
    return params.compute.path if model["fast_path"] else "plain"


def _check(value: Any, where: str) -> None:
    """Raise TypeError for what JSON would turn into something else, and so give two things one key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{where} has the name {name!r}; only text can be one")
            _check(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(item, f"{where}[{i}]")
    elif value is not None and not isinstance(value, str | int | float):
        raise TypeError(f"{where} is a {type(value).__name__}; text, numbers, true, false, none, lists and mappings do")
