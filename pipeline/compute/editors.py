"""An editing method ready to edit: its settings for one problem, and the second moments of a statistics folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from torch import Tensor

from pipeline.compute.keys import path
from pipeline.edit.moments import MOMENTS
from pipeline.edit.protocol import Editor, Method, Resources

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params


def editor(
    lm: LanguageModel, params: Params, model: dict[str, Any], method: Method, problem: str, folder: Path
) -> Editor:
    """The method's editor for the problem; model: what data/model.json says of `lm`."""

    def moment(layer: int) -> Tensor:
        with safe_open(folder / MOMENTS, framework="pt") as file:
            return file.get_tensor(str(layer)).to(lm.device)

    settings = method.settings(**params.for_problem(method.name, problem))
    return method.editor(settings, Resources(moment, params.statistics.ridge, path(params, model)))
