"""params.yaml as frozen pydantic models, and the one sentence for everything that can be wrong in it.

The keys are explained in params.yaml itself, one line each. No key has a default here: a params file is
complete, so that nothing that decides a number hides in the code. Values are taken strictly (the text '3' is
not the number 3, and true is not 1), unknown keys are refused with a suggestion, and every field's
`description` completes the sentence "KEY is FOUND but must be ..." of `pipeline.yaml_errors`.

`python -m pipeline.params FILE` checks a file and computes nothing.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from pipeline.errors import UserError
from pipeline.yaml_errors import WHOLE_FILE, found, read_yaml, sentence

Problem = Literal["error_injection", "tracing_reversal", "fact_erasure", "fact_amplification", "fact_forcing"]
Method = Literal["rome"]
Module = Literal["mlp", "attn", "hidden"]
FactsSource = Literal["embedded", "counterfact", "counterfact_flat", "known_1000", "zsre"]
KnownRule = Literal["greedy", "within", "none"]
Score = Literal["rewrite", "paraphrase", "paraphrase_first", "neighborhood", "neighborhood_first", "overall"]
TraceMeasure = Literal["fraction", "effect", "last_subject", "last_subject_fraction"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]

PROBLEMS: tuple[Problem, ...] = get_args(Problem)
METHODS: tuple[Method, ...] = get_args(Method)
MODULES: tuple[Module, ...] = get_args(Module)
SCORES: tuple[Score, ...] = get_args(Score)
TRACE_MEASURES: tuple[TraceMeasure, ...] = get_args(TraceMeasure)

# No setting means anything beyond this; a typing slip with many zeros would otherwise run for ever.
_HUGE = 10**12

_T = TypeVar("_T")


def _once_each(values: tuple[_T, ...]) -> tuple[_T, ...]:
    """Refuse a list that names something twice: it would be computed, counted and plotted twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise PydanticCustomError("twice", "holds {value} twice; name each one once", {"value": value})
    return values


def _inside_project(path: str) -> str:
    """Refuse a path that leaves the project by a detour; an absolute path is taken to be meant."""
    parts = PurePosixPath(path).parts
    if path.startswith("~") or (".." in parts and not path.startswith("/")):
        raise ValueError("leaves the project")
    return path


def _line(text: str) -> str:
    """Refuse empty text, text around which or in which something invisible stands."""
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("not one plain line")
    return text


def _model_name(name: str) -> str:
    prefix, colon, rest = name.partition(":")
    if colon and not (prefix == "packaged" and rest) and name != "trained:tiny":
        raise ValueError("unknown prefix")
    return _inside_project(name)


def _statistics_text(text: str) -> str:
    if text == "dataset:":
        raise ValueError("no name")
    return text if text.startswith("dataset:") else _inside_project(text)


def parse_memory(memory: int | str) -> int | None:
    """Bytes of "auto" (None), of a number of bytes, or of text such as "4GB" (10**9) and "512MiB" (2**20).

    Raises ValueError for anything else, and for less than one byte.
    """
    if memory == "auto":
        return None
    if isinstance(memory, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kKMGT])(i?)B", memory)
        if match is None:
            raise ValueError(f"{memory!r} is no amount of memory")
        number, unit, binary = match.groups()
        memory = int(float(number) * (1024 if binary else 1000) ** ("KMGT".index(unit.upper()) + 1))
    if not 1 <= memory < 10**18:
        raise ValueError(f"{memory} bytes is no amount of memory")
    return memory


def _memory(memory: int | str) -> int | str:
    parse_memory(memory)
    return memory


def _amount(memory: int | str) -> int | str:
    if parse_memory(memory) is None:
        raise ValueError("no amount")
    return memory


def _address(address: str) -> str:
    match = re.fullmatch(r"ray://(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address, re.ASCII)
    if address not in ("auto", "local") and not (match and 0 < int(match[1]) < 2**16):
        raise ValueError("no address of a cluster")
    return address


def _gpus(count: float) -> float:
    if count > 1 and not count.is_integer():  # Ray gives out parts of one GPU, or whole ones
        raise ValueError("more than one GPU, and a part of another")
    return count


Line = Annotated[str, AfterValidator(_line)]
ProjectPath = Annotated[str, AfterValidator(_line), AfterValidator(_inside_project)]
# From YAML it is a list; strict models take only a tuple for a tuple, hence strict=False.
Several = Annotated[tuple[_T, ...], Field(strict=False, min_length=1), AfterValidator(_once_each)]
AtLeast0 = Annotated[int, Field(ge=0, le=_HUGE)]
AtLeast1 = Annotated[int, Field(ge=1, le=_HUGE)]
ModulePath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+)*$")]

_LAYERS = "all, or a list of different layers counted from 0, such as [0, 4, 8]"
_LIST_OF = "a list of one or more of "


def _choices(values: tuple[str, ...]) -> str:
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last


class Section(BaseModel):
    """A section of params.yaml: complete, strict, and unchangeable once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModuleNames(Section):
    """Module paths for a model family that `pipeline.models` does not know."""

    blocks: ModulePath = Field(description="the path of the list of blocks in the model, such as transformer.h")
    attn: ModulePath = Field(description="the path of the attention module in a block, such as attn")
    mlp: ModulePath = Field(description="the path of the MLP module in a block, such as mlp")
    down_proj: ModulePath = Field(description="the path of the MLP's last linear map in a block, such as mlp.c_proj")
    final_norm: ModulePath = Field(description="the path of the last normalization, such as transformer.ln_f")
    head: ModulePath = Field(description="the path of the map from the last block to the vocabulary, such as lm_head")
    mlp_norm: ModulePath | None = Field(
        default=None, description="the path of a norm between MLP and residual stream in a block, or null for none"
    )


class ModelParams(Section):
    """Which model, and how it is held in memory."""

    name: Annotated[Line, AfterValidator(_model_name)] = Field(
        description="packaged:NAME, trained:tiny, a local folder (without .., or absolute) or a hub name"
    )
    revision: Line | None = Field(
        description="null, or a branch, tag or commit of the hub as text (in quotes where it is all digits)"
    )
    dtype: Dtype = Field(description=_choices(get_args(Dtype)))
    add_bos: bool = Field(description="true or false")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda|cuda:\d{1,3})$")] = Field(
        description="auto, cpu, cuda, cuda:N (N counted from 0) or mps"
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        description="null, auto, balanced, balanced_low_0 or sequential"
    )
    allow_pickle: bool = Field(description="true or false")
    trust_remote_code: bool = Field(description="true or false")
    names: ModuleNames | None = Field(
        description="null, or a mapping of blocks, attn, mlp, down_proj, final_norm and head to module paths"
    )


class KnownParams(Section):
    """Which facts count as known to the model; the others are dropped, with the reason."""

    rule: KnownRule = Field(description=_choices(get_args(KnownRule)))
    within_tokens: AtLeast1 = Field(description="a whole number of tokens, at least 1")
    min_p_true: float = Field(ge=0, lt=1, description="a probability of at least 0 and below 1")


class FactsParams(Section):
    """Which facts, from where, and how many."""

    source: FactsSource = Field(description=_choices(get_args(FactsSource)))
    path: ProjectPath = Field(description="a folder or file inside the project (without ..), or an absolute path")
    relations: Annotated[tuple[Line, ...], Field(strict=False, min_length=1), AfterValidator(_once_each)] | None = (
        Field(description="a list of relations of the fact file, or null for all of them")
    )
    count: AtLeast1 | None = Field(description="a whole number of facts, at least 1, or null for all known facts")
    max_paraphrases: AtLeast0 = Field(description="a whole number of prompts, at least 0")
    max_neighborhood: AtLeast0 = Field(description="a whole number of prompts, at least 0")
    known: KnownParams = Field(description="a mapping with the keys rule, within_tokens and min_p_true")


class NoiseParams(Section):
    """The noise on the subject's input embeddings, for tracing and for fact forcing."""

    multiple: float = Field(gt=0, description="a number above 0, in standard deviations of the subjects' embeddings")
    sd: Annotated[float, Field(gt=0)] | None = Field(
        description="null, or a number above 0, in units of the embeddings"
    )
    samples: AtLeast1 = Field(description="a whole number of noise samples, at least 1")


class TraceParams(Section):
    """What causal tracing restores."""

    modules: Several[Module] = Field(description=_LIST_OF + ", ".join(MODULES))
    windows: Several[AtLeast1] = Field(
        description="a list of one or more whole numbers of layers, each at least 1, such as [1, 5]"
    )


class StatisticsParams(Section):
    """The text for the second moments of the keys, and the context prefixes."""

    text: Annotated[Line, AfterValidator(_statistics_text)] = Field(
        description="model, dataset:NAME, or the path of a UTF-8 text file (inside the project, or absolute)"
    )
    tokens: AtLeast1 = Field(description="a whole number of tokens, at least 1")
    sequence_length: Annotated[int, Field(ge=2, le=_HUGE)] = Field(description="a whole number of tokens, at least 2")
    temperature: float = Field(gt=0, description="a number above 0")
    ridge: float = Field(ge=0, description="a number of at least 0")
    prefix_lengths: Several[AtLeast1] = Field(
        description="a list of one or more whole numbers of tokens, each at least 1, such as [5, 10]"
    )
    prefixes_per_length: AtLeast0 = Field(description="a whole number of prefixes, at least 0")


class EditParams(Section):
    """Which edits are made."""

    methods: Several[Method] = Field(description=_LIST_OF + ", ".join(METHODS))
    problems: Several[Problem] = Field(description=_LIST_OF + ", ".join(PROBLEMS))
    layers: Literal["all"] | Several[AtLeast0] = Field(description=_LAYERS)
    forcing_noise_samples: AtLeast1 = Field(description="a whole number of noise samples, at least 1")
    erasure_min_p: float = Field(ge=0, lt=1, description="a probability of at least 0 and below 1")
    max_failed_share: float = Field(ge=0, le=1, description="a share from 0 to 1")

    def layer_list(self, n_layers: int) -> list[int]:
        """The layers to edit in a model of `n_layers` blocks, ascending, counted from 0."""
        return list(range(n_layers)) if self.layers == "all" else sorted(int(layer) for layer in self.layers)


# The keys of `rome`, which by_problem may set again for one problem.
Steps = Annotated[AtLeast1, Field(description="a whole number of optimization steps, at least 1")]
LearningRate = Annotated[float, Field(gt=0, description="a number above 0")]
Weight = Annotated[float, Field(ge=0, description="a number of at least 0")]
ClampNormFactor = Annotated[float, Field(gt=0, description="a number above 0, in norms of the unedited value")]
RomeKey = Annotated[Literal["prompt", "mean"], Field(description="prompt or mean")]
LeaveWhen = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | None,
    Field(description="null, or a probability above 0 and below 1"),
]


class RomeOverrides(TypedDict, total=False):
    """The keys of `rome` that one problem may set for itself."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # type: ignore[misc]

    steps: Steps
    learning_rate: LearningRate
    kl_factor: Weight
    weight_decay: Weight
    clamp_norm_factor: ClampNormFactor
    key: RomeKey
    leave_when: LeaveWhen


class RomeParams(Section):
    """ROME's optimization of v* and its key; pipeline/editors/rome.py has the formulas."""

    steps: Steps
    learning_rate: LearningRate
    kl_factor: Weight
    weight_decay: Weight
    clamp_norm_factor: ClampNormFactor
    key: RomeKey
    leave_when: LeaveWhen
    by_problem: dict[Problem, RomeOverrides] = Field(
        description=f"a mapping from {_choices(PROBLEMS)} to keys of rome, or {{}}"
    )

    def for_problem(self, problem: str) -> "RomeParams":
        """These settings with what `by_problem` sets for `problem` put in; its own `by_problem` is empty."""
        overrides = {str(name): keys for name, keys in self.by_problem.items()}.get(problem, {})
        return self.model_copy(update={**overrides, "by_problem": {}})


class RegressionsParams(Section):
    """Which regressions, and how sure their intervals are."""

    scores: Several[Score] = Field(description=_LIST_OF + ", ".join(SCORES))
    trace_measures: Several[TraceMeasure] = Field(description=_LIST_OF + ", ".join(TRACE_MEASURES))
    null_layers: Literal["drop", "keep"] = Field(description="drop or keep")
    bootstrap_samples: AtLeast1 = Field(description="a whole number of resamples, at least 1")
    permutations: AtLeast1 = Field(description="a whole number of dealings, at least 1")
    folds: Annotated[int, Field(ge=2, le=1000)] = Field(description="a whole number of folds, 2 to 1000")
    confidence: float = Field(gt=0, lt=1, description="a share above 0 and below 1, such as 0.95")


class ReportParams(Section):
    """How the report looks."""

    title: Line = Field(description="one line of text")
    example_fact: Line = Field(description="auto or a fact_id, as text")
    dpi: Annotated[int, Field(ge=50, le=1200)] = Field(description="a whole number of dots per inch, 50 to 1200")


class ComputeParams(Section):
    """How the work is done on this machine; no stage depends on it, as results change by rounding at most."""

    memory: Annotated[int | str, AfterValidator(_memory)] = Field(
        description='auto, a whole number of bytes, or an amount such as "4GB" or "512MiB"'
    )
    path: Literal["fast", "plain"] = Field(description="fast or plain")
    tf32: bool = Field(description="true or false")
    compile: bool = Field(description="true or false")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = Field(
        description="auto, or a whole number of threads, 1 to 4096"
    )
    engine: Literal["local", "ray"] = Field(description="local or ray")
    address: Annotated[str, AfterValidator(_address)] = Field(description="auto, local or ray://HOST:PORT")
    worker_gpus: Annotated[float, Field(gt=0, le=64), AfterValidator(_gpus)] = Field(
        description="a share above 0 and up to 1, or a whole number of GPUs up to 64"
    )
    worker_memory: Annotated[int | str, AfterValidator(_amount)] | None = Field(
        description='null, a whole number of bytes, or an amount such as "16GB"'
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = Field(
        description="auto, or a whole number of processes, 1 to 4096"
    )

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes, or None for auto."""
        return parse_memory(self.memory)

    @property
    def worker_bytes(self) -> int | None:
        """The memory that each worker asks a cluster for, in bytes, or None for nothing asked."""
        return None if self.worker_memory is None else parse_memory(self.worker_memory)


class Params(Section):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(description="a whole number, 0 to 2**63 - 1")
    model: ModelParams
    facts: FactsParams
    noise: NoiseParams
    trace: TraceParams
    statistics: StatisticsParams
    edit: EditParams
    rome: RomeParams
    regressions: RegressionsParams
    report: ReportParams
    compute: ComputeParams

    @model_validator(mode="after")
    def _agree(self) -> "Params":
        """Refuse keys that are each fine and contradict each other."""
        for told in _contradictions(self):
            raise PydanticCustomError("contradiction", "{told}", {"told": told})
        return self


def _contradictions(params: Params) -> Iterator[str]:
    """A sentence for each pair of keys that contradict each other."""
    model, statistics, regressions = params.model, params.statistics, params.regressions
    if model.revision is not None and model.name.startswith(("packaged:", "trained:")):
        yield f"model.revision is {model.revision!r} but must be null for {model.name}, which is on no hub"
    if model.device_map is not None and model.device != "auto":
        yield f"model.device is {model.device} but must be auto where model.device_map is {model.device_map}"
    if params.compute.engine == "ray" and model.device.startswith("cuda:"):
        yield (
            f"model.device is {model.device} but must be auto, cuda or cpu where compute.engine is ray, "
            "under which a worker sees its own GPU only"
        )
    if statistics.tokens < statistics.sequence_length:
        yield (
            f"statistics.tokens is {statistics.tokens} but must be at least statistics.sequence_length, "
            f"{statistics.sequence_length}"
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


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check a params file.

    Raises UserError, one sentence that names the file and the key, what was found and what would be right.
    """
    path = Path(path)
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: found {found(tree)} but a params file must be a mapping of the sections "
            f"{', '.join(Params.model_fields)}; {WHOLE_FILE}"
        )
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: {sentence(error, Params)}") from None


def check_against_model(params: Params, n_layers: int) -> None:
    """Refuse edit layers that a model of `n_layers` blocks does not have, and windows wider than it.

    Raises UserError.
    """
    if params.edit.layers != "all":
        for layer in params.edit.layers:
            if int(layer) >= n_layers:
                raise UserError(
                    f"params.yaml: edit.layers holds {layer} but must stay within 0 to {n_layers - 1}, "
                    f"as {params.model.name} has {n_layers} blocks counted from 0"
                )
    for window in params.trace.windows:
        if window > n_layers:
            raise UserError(
                f"params.yaml: trace.windows holds {window} but must hold widths of 1 to {n_layers} layers, "
                f"as {params.model.name} has {n_layers} blocks"
            )


def main() -> int:
    """Check the file that the command line names (params.yaml); returns the exit status."""
    try:
        load(*sys.argv[1:2])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
