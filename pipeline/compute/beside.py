"""What the stages of measures/dvc.yaml edit with: the layers and methods of their own sections, and second moments of
the blocks which these change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.compute import inputs, statistics
from pipeline.compute.batches import layer_of
from pipeline.edit.methods import moments_window
from pipeline.edit.moments import MOMENTS
from pipeline.edit.published import place
from pipeline.errors import UserError
from pipeline.settings.params import Params
from pipeline.tables import read_record, write_json

STATISTICS = inputs.MEASURES / "statistics"


def edited(params: Params, model: Mapping[str, Any]) -> Params:
    """The settings with, as layers to edit, those of the sections table and scaling together, and those of the papers.

    model: what data/model.json says.
    """
    places = [place(method, str(model.get("family")), model["layers"]) for method in params.table.methods]
    published = {there.layer for there in places if there}
    own = {layer_of(params, method, model) for method in params.scaling.methods}
    layers = sorted({*params.table.layers, *params.scaling.layers, *published, *own})
    return params.with_layers(layers)


def widest_window(params: Params) -> int:
    """How many blocks an edit of those sections changes at the most, where it needs second moments; at least 1."""
    methods = {*params.table.methods, *params.scaling.methods}
    widths = {moments_window(params, method) for method in methods}
    return max(1, *widths, *(params.scaling.windows if "memit" in methods else ()))


def borrow(params: Params, model: dict[str, Any], window: int) -> bool:
    """Take the main path's second moments for STATISTICS where they hold all blocks; False where they don't.

    params: as of `edited`.
    """
    source = inputs.STATISTICS
    try:
        statistics.read_for(params, model, source, window)
    except UserError:
        return False
    STATISTICS.mkdir(parents=True, exist_ok=True)
    for name in (MOMENTS, statistics.CONTEXTS):
        _same(source / name, STATISTICS / name)
    manifest = read_record(source / statistics.MANIFEST)
    write_json(manifest | {"key": statistics.key_of(params, model, window)}, STATISTICS / statistics.MANIFEST)
    return True


def _same(source: Path, target: Path) -> None:
    """Make `target` the same file, or a copy where the disk has no links; neither is ever written in place."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)
