"""params.yaml as frozen pydantic models, and the one sentence for everything that can be wrong in it.

The keys are explained in params.yaml itself, one line each. No key has a default here: a params file is
complete, so that nothing that decides a number hides in the code. Values are taken strictly (the text '3' is
not the number 3, and true is not 1), unknown keys are refused with a suggestion, and every field's
`description` completes the sentence "KEY is FOUND but must be ..." of `pipeline.settings.yaml_errors`.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError

from pipeline.errors import UserError
from pipeline.settings.fields import DOWNLOAD, DOWNLOADED, LIST_OF, LayerList, Several, choices
from pipeline.settings.measures import (
    EssenceParams,
    MapsParams,
    OverrideParams,
    RobustnessParams,
    ScalingParams,
    TableParams,
)
from pipeline.settings.methods import method_section
from pipeline.settings.sections import (
    ComputeParams,
    EditParams,
    FactsParams,
    LocalizeParams,
    ModelParams,
    NoiseParams,
    RegressionsParams,
    ReportParams,
    Section,
    StatisticsParams,
    TraceParams,
)
from pipeline.settings.yaml_errors import WHOLE_FILE, found, read_yaml, sentence

# What the tables of a stage of measures/dvc.yaml rest on beside its own section.
RESTS_ON = {
    "essence": ("edit", "regressions"), "robustness": ("edit", "regressions", "trace"), "override": ("edit",),
}  # fmt: skip
LISTING: dict[str, type[Section]] = {
    "edit": EditParams, "table": TableParams, "scaling": ScalingParams, "override": OverrideParams,
}  # fmt: skip


class Params(Section):
    """The whole of params.yaml. `sections` has those of the editing methods, where they were read."""

    model_config = ConfigDict(extra="ignore")  # sections of methods, and what `load` refuses where it knows these

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(description="a whole number, 0 to 2**63 - 1")
    model: ModelParams
    facts: FactsParams
    noise: NoiseParams
    trace: TraceParams
    localize: LocalizeParams
    statistics: StatisticsParams
    edit: EditParams
    maps: MapsParams
    essence: EssenceParams
    table: TableParams
    scaling: ScalingParams
    robustness: RobustnessParams
    override: OverrideParams
    regressions: RegressionsParams
    report: ReportParams
    compute: ComputeParams
    _sections: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)

    @property
    def sections(self) -> dict[str, dict[str, Any]]:
        """Method to its section's keys, all as plain values."""
        return self._sections

    def for_problem(self, method: str, problem: str) -> dict[str, Any]:
        """A method's settings with what its `by_problem` sets for `problem` put in."""
        section = self._sections[method]
        plain = {key: value for key, value in section.items() if key != "by_problem"}
        return plain | section["by_problem"].get(problem, {})

    def with_section(self, method: str, **keys: Any) -> "Params":
        """These settings with the method's section being `keys`, for all problems."""
        changed = self.model_copy()
        changed._sections = self._sections | {method: {**keys, "by_problem": {}}}
        return changed

    def with_layers(self, layers: Iterable[int]) -> "Params":
        """These settings with other layers to edit, whatever the method."""
        changed = {"layers": tuple(layers), "layers_by_method": {}}
        return self.model_copy(update={"edit": self.edit.model_copy(update=changed)})

    def tree(self) -> dict[str, Any]:
        """All settings as params.yaml has them, for JSON."""
        return self.model_dump(mode="json") | self._sections

    def identity(self, section: str) -> dict[str, Any]:
        """What the tables of a stage of measures/dvc.yaml are made of, beside the model's weights, for the page to tell
        this run's from another's. section: the stage's own; sections of methods are there where they were read.
        """
        tree = self.tree()
        listing = tree[section] if section in LISTING else tree["edit"] if section in RESTS_ON else {}
        names = ("seed", "facts", "noise", "statistics", section, *RESTS_ON.get(section, ()))
        used = {name: tree[name] for name in (*names, *listing.get("methods", ())) if name in tree}
        loaded = {key: value for key, value in tree["model"].items() if key in ("dtype", "add_bos", "names")}
        return {"model": loaded, "compute": {key: tree["compute"][key] for key in ("path", "tf32")}, **used}

    @model_validator(mode="after")
    def _agree(self) -> "Params":
        """Refuse keys that are each fine and contradict each other."""
        for told in _contradictions(self):
            raise PydanticCustomError("contradiction", "{told}", {"told": told})
        return self


def _contradictions(params: Params) -> Iterator[str]:
    """A sentence for each pair of keys that contradict each other."""
    model, facts, statistics, regressions = params.model, params.facts, params.statistics, params.regressions
    if model.revision is not None and model.name.startswith(("packaged:", "trained:")):
        yield f"model.revision is {model.revision!r} but must be null for {model.name}, which is on no hub"
    if model.device_map is not None and model.device != "auto":
        yield f"model.device is {model.device} but must be auto where model.device_map is {model.device_map}"
    if params.compute.engine == "ray" and model.device.startswith("cuda:"):
        yield (
            f"model.device is {model.device} but must be auto, cuda or cpu where compute.engine is ray, "
            "under which a worker sees its own GPU only"
        )
    if facts.path == DOWNLOAD and facts.source not in DOWNLOADED:
        yield (
            f"facts.path is {DOWNLOAD} but must name a folder or file where facts.source is {facts.source}; what is "
            f"given out to be fetched is {choices(DOWNLOADED)}"
        )
    if facts.records is not None and facts.source == "embedded":
        yield (
            f"facts.records is {facts.records} but must be null where facts.source is embedded, whose facts come in an "
            "order drawn by the seed; facts.relations and facts.count choose there"
        )
    if statistics.tokens < statistics.sequence_length:
        yield (
            f"statistics.tokens is {statistics.tokens} but must be at least statistics.sequence_length, "
            f"{statistics.sequence_length}"
        )
    if params.table.snippets is not None and params.facts.source != "counterfact":
        yield (
            f"table.snippets is {params.table.snippets} but must be null unless facts.source is counterfact, whose "
            "records name the objects that the snippets are of"
        )
    for score, key, count in (
        ("paraphrase", "max_paraphrases", params.facts.max_paraphrases),
        ("paraphrase_first", "max_paraphrases", params.facts.max_paraphrases),
        ("neighborhood", "max_neighborhood", params.facts.max_neighborhood),
        ("neighborhood_first", "max_neighborhood", params.facts.max_neighborhood),
    ):
        if count == 0 and score in regressions.scores:
            yield f"regressions.scores holds {score} but facts.{key} is 0; raise it, or drop that score"
        if count == 0 and "overall" in regressions.scores:
            yield f"regressions.scores holds overall, which needs {score}, but facts.{key} is 0; raise it"
    # Below this, no resample lies beyond either end of the interval and its ends are just the extremes.
    least = round(2 / (1 - regressions.confidence))
    for key in ("bootstrap_samples", "permutations"):
        if getattr(regressions, key) < least:
            yield (
                f"regressions.{key} is {getattr(regressions, key)} but must be at least {least} "
                f"for a confidence of {regressions.confidence:g}"
            )


def load(path: str | Path = "params.yaml", methods: Mapping[str, type] | None = None) -> Params:
    """Read and check a params file.

    methods: the editing methods there are, name to the dataclass of its settings. Without them, as in a stage that
    edits nothing, the sections of methods are neither checked nor read.
    Raises UserError, one sentence that names the file and the key, what was found and what would be right.
    """
    path = Path(path)
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: found {found(tree)} but a params file must be a mapping of the sections "
            f"{', '.join(Params.model_fields)}; {WHOLE_FILE}"
        )
    whole = Params if methods is None else with_methods(methods, _used(tree))
    try:
        checked = whole.model_validate(tree)
        params = Params.model_validate({key: tree[key] for key in Params.model_fields})
    except ValidationError as error:
        raise UserError(f"{path}: {sentence(error, whole)}") from None
    for name in methods or ():
        if (section := getattr(checked, name)) is not None:
            params._sections[name] = section.model_dump()
    return params


def with_methods(methods: Mapping[str, type], used: Collection[str]) -> type[Params]:
    """`Params` with a section for each of `methods`, needed for those that are `used`; nothing else is let through."""
    listed: Any = (Several[Literal[tuple(methods)]], Field(description=LIST_OF + ", ".join(methods)))  # type: ignore[misc]
    fields: dict[str, Any] = {}
    by_method: Any = dict[Literal[tuple(methods)], LayerList]  # type: ignore[misc]
    for name, base in LISTING.items():
        own: dict[str, Any] = {"methods": listed}
        if "layers_by_method" in base.model_fields:
            own["layers_by_method"] = (by_method, base.model_fields["layers_by_method"])
        fields[name] = (create_model(base.__name__, __base__=base, **own), ...)
    for name, settings in methods.items():
        section = method_section(name, settings)
        fields[name] = (section, ...) if name in used else (section | None, None)
    whole: type[Params] = create_model("Params", __base__=Params, **fields)
    whole.model_config["extra"] = "forbid"
    whole.model_rebuild(force=True)
    return whole


def _used(tree: Mapping[Any, Any]) -> set[str]:
    """The methods that the sections of LISTING name, as far as they can be read."""
    found = set()
    for name in LISTING:
        section = tree.get(name)
        names = section.get("methods") if isinstance(section, dict) else None
        found |= {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    return found


MAIN = ("edit", "trace")  # sections of the main path that speak of layers


def check_against_model(params: Params, n_layers: int, sections: Collection[str] = MAIN) -> None:
    """Refuse layers of these sections that a model of `n_layers` blocks does not have, and windows wider than it.

    Raises UserError.
    """
    for name in sections:
        section = getattr(params, name)
        lists = {"layers": getattr(section, "layers", None) or "all"}
        lists |= {f"layers_by_method.{key}": own for key, own in getattr(section, "layers_by_method", {}).items()}
        for key, layers in lists.items():
            for layer in () if layers == "all" else layers:
                if int(layer) >= n_layers:
                    raise UserError(
                        f"params.yaml: {name}.{key} holds {layer} but must stay within 0 to {n_layers - 1}, "
                        f"as {params.model.name} has {n_layers} blocks counted from 0"
                    )
        own = getattr(section, "layer", None)
        if own is not None and own >= n_layers:
            raise UserError(
                f"params.yaml: {name}.layer is {own} but must stay within 0 to {n_layers - 1}, "
                f"as {params.model.name} has {n_layers} blocks counted from 0"
            )
        if name == "override" and section.window > n_layers:
            raise UserError(
                f"params.yaml: override.window is {section.window} but must be 1 to {n_layers} layers, "
                f"as {params.model.name} has {n_layers} blocks"
            )
        for window in getattr(section, "windows", ()) if name in ("trace", "maps", "robustness") else ():
            if window > n_layers:
                raise UserError(
                    f"params.yaml: {name}.windows holds {window} but must hold widths of 1 to {n_layers} layers, "
                    f"as {params.model.name} has {n_layers} blocks"
                )
