"""The kinds of values that params.yaml holds: lists of names, checked texts, bounded numbers.

A field's `description` completes the sentence "KEY is FOUND but must be ..." of `pipeline.settings.yaml_errors`. A
method's settings (pipeline.edit) are made of these too.
"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

Problem = Literal["error_injection", "tracing_reversal", "fact_erasure", "fact_amplification", "fact_forcing"]
Module = Literal["mlp", "attn", "hidden"]
Severed = Literal["mlp", "attn"]
Corruption = Literal["gaussian", "zero", "replace"]
Metric = Literal["probability", "log_probability", "logit_difference"]
FactsSource = Literal["embedded", "counterfact", "counterfact_flat", "known_1000", "zsre"]
KnownRule = Literal["greedy", "within", "none"]
Score = Literal[
    "rewrite", "paraphrase", "paraphrase_first", "neighborhood", "neighborhood_first", "overall", "reverse"
]  # fmt: skip
ReversalTarget = Literal["first_word", "first_content_word"]
TraceMeasure = Literal["fraction", "effect", "last_subject", "last_subject_fraction"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]

PROBLEMS: tuple[Problem, ...] = get_args(Problem)
MODULES: tuple[Module, ...] = get_args(Module)
SEVERED: tuple[Severed, ...] = get_args(Severed)
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
METRICS: tuple[Metric, ...] = get_args(Metric)
SCORES: tuple[Score, ...] = get_args(Score)
TRACE_MEASURES: tuple[TraceMeasure, ...] = get_args(TraceMeasure)

DOWNLOAD = "download"  # facts.path: the published file of one of these
DOWNLOADED: tuple[FactsSource, ...] = ("counterfact", "known_1000", "zsre")

# No setting means anything beyond this; a typing slip with many zeros would otherwise run for ever.
HUGE = 10**12

_T = TypeVar("_T")


def once_each(values: tuple[_T, ...]) -> tuple[_T, ...]:
    """Refuse a list that names something twice: it would be computed, counted and plotted twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise PydanticCustomError("twice", "holds {value} twice; name each one once", {"value": value})
    return values


def inside_project(path: str) -> str:
    """Refuse a path that leaves the project by a detour; an absolute path is taken to be meant."""
    parts = PurePosixPath(path).parts
    if path.startswith("~") or (".." in parts and not path.startswith("/")):
        raise ValueError("leaves the project")
    return path


def plain_line(text: str) -> str:
    """Refuse empty text, text around which or in which something invisible stands."""
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("not one plain line")
    return text


def model_name(name: str) -> str:
    prefix, colon, rest = name.partition(":")
    if colon and not (prefix == "packaged" and rest) and name != "trained:tiny":
        raise ValueError("unknown prefix")
    return inside_project(name)


def statistics_text(text: str) -> str:
    if text == "dataset:":
        raise ValueError("no name")
    return text if text.startswith("dataset:") else inside_project(text)


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


def memory_text(memory: int | str) -> int | str:
    parse_memory(memory)
    return memory


def memory_amount(memory: int | str) -> int | str:
    if parse_memory(memory) is None:
        raise ValueError("no amount")
    return memory


def cluster_address(address: str) -> str:
    match = re.fullmatch(r"ray://(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address, re.ASCII)
    if address not in ("auto", "local") and not (match and 0 < int(match[1]) < 2**16):
        raise ValueError("no address of a cluster")
    return address


def none_or_a_pair(tokens: int) -> int:
    if tokens == 1:  # of one token, nothing is predicted
        raise ValueError("a single token")
    return tokens


def gpu_share(count: float) -> float:
    if count > 1 and not count.is_integer():  # Ray gives out parts of one GPU, or whole ones
        raise ValueError("more than one GPU, and a part of another")
    return count


Line = Annotated[str, AfterValidator(plain_line)]
ProjectPath = Annotated[str, AfterValidator(plain_line), AfterValidator(inside_project)]
# From YAML it is a list; strict models take only a tuple for a tuple, hence strict=False.
Several = Annotated[tuple[_T, ...], Field(strict=False, min_length=1), AfterValidator(once_each)]
AtLeast0 = Annotated[int, Field(ge=0, le=HUGE)]
AtLeast1 = Annotated[int, Field(ge=1, le=HUGE)]
ModulePath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+)*$")]

_LAYERS = "a list of different layers counted from 0, such as [0, 4, 8]"
LAYERS = f"all, or {_LAYERS}"
LayerList = Annotated[Several[AtLeast0], Field(description=_LAYERS)]
LIST_OF = "a list of one or more of "


def choices(values: tuple[str, ...]) -> str:
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last


# The keys of methods.
Steps = Annotated[AtLeast1, Field(description="a whole number of optimization steps, at least 1")]
LearningRate = Annotated[float, Field(gt=0, description="a number above 0")]
Weight = Annotated[float, Field(ge=0, description="a number of at least 0")]
NormFactor = Annotated[float, Field(gt=0, description="a number above 0, in norms of the unedited value")]
Probability = Annotated[
    Annotated[float, Field(gt=0, lt=1)] | None, Field(description="null, or a probability above 0 and below 1")
]
StopLoss = Annotated[Annotated[float, Field(gt=0)] | None, Field(description="null, or a loss above 0")]
MaxChange = Annotated[
    Annotated[float, Field(gt=0)] | None, Field(description="null, or a number above 0, in the units of the weights")
]
Window = Annotated[AtLeast1, Field(description="a whole number of blocks, at least 1")]
Copies = Annotated[AtLeast1, Field(description="a whole number of copies of the prompt, at least 1")]
ErasureLoss = Annotated[Literal["mean_of_exp", "exp_of_mean"], Field(description="mean_of_exp or exp_of_mean")]

# Of knowledge neurons.
PathSteps = Annotated[Annotated[int, Field(ge=1, le=1000)], Field(description="a whole number of steps, 1 to 1000")]
PathRule = Annotated[Literal["gauss", "right"], Field(description="gauss or right")]
MaximumShare = Annotated[float, Field(ge=0, lt=1, description="a share of the largest attribution, 0 to below 1")]
Sharing = Annotated[
    Annotated[float, Field(gt=0, le=1)] | None, Field(description="null, or a share of the prompts above 0, at most 1")
]
EmbeddingFactor = Annotated[float, Field(gt=0, description="a number above 0")]
NeuronWindow = Annotated[Literal["all"] | AtLeast1, Field(description="all, or a whole number of blocks, at least 1")]
