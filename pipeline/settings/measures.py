"""The sections of params.yaml for the stages of measures/dvc.yaml, which stand beside the main path."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from pipeline.settings.fields import (
    CORRUPTIONS,
    LIST_OF,
    METRICS,
    MODULES,
    SEVERED,
    TRACE_MEASURES,
    AtLeast0,
    AtLeast1,
    Corruption,
    LayerList,
    Line,
    Metric,
    Module,
    ProjectPath,
    Several,
    Severed,
    TraceMeasure,
    once_each,
)
from pipeline.settings.sections import Section

_FACTS = "null for all of the run's, or a whole number of facts, at least 1"
_WIDTHS = "a list of one or more whole numbers of layers, each at least 1, such as [1, 5]"
_METHODS = LIST_OF + "the names of editing methods"
_REPLACING = Literal["error_injection", "tracing_reversal"]  # problems that put a new object in the true one's place


class MapsParams(Section):
    """Average indirect effects by token role and layer."""

    count: AtLeast1 | None = Field(description=_FACTS)
    windows: Several[AtLeast1] = Field(description=_WIDTHS)
    severed: Annotated[tuple[Severed, ...], Field(strict=False), AfterValidator(once_each)] = Field(
        description="a list, which may be empty, of different names out of " + ", ".join(SEVERED)
    )


class EssenceParams(Section):
    """What edits leave of what the model has to say of a subject."""

    count: AtLeast1 | None = Field(description=_FACTS)
    texts: AtLeast1 = Field(description="a whole number of texts, at least 1")
    tokens: AtLeast1 = Field(description="a whole number of tokens, at least 1")


class TableParams(Section):
    """The CounterFact table."""

    count: AtLeast1 = Field(description="a whole number of facts, at least 1")
    choose_on: AtLeast1 = Field(description="a whole number of facts, at least 1")
    methods: Several[Line] = Field(description=_METHODS)
    layers: LayerList
    generate_tokens: AtLeast1 = Field(description="a whole number of tokens, at least 1")
    generate_prompts: AtLeast1 = Field(description="a whole number of texts, at least 1")
    snippets: ProjectPath | None = Field(
        description="null, or the path of attribute_snippets.json inside the project (without ..), or an absolute one"
    )


class ScalingParams(Section):
    """Many edits at once, and the number and place of the layers that share them."""

    counts: Several[AtLeast1] = Field(description="a list of one or more whole numbers of edits, such as [1, 10, 100]")
    facts: AtLeast1 = Field(description="a whole number of facts, at least 1")
    methods: Several[Line] = Field(description=_METHODS)
    layer: AtLeast0 | None = Field(description="null for the papers' relative depth, or a layer counted from 0")
    batch: AtLeast1 = Field(description="a whole number of facts, at least 1")
    decay: tuple[float, float] | None = Field(
        strict=False, description="null for none, or a list of two numbers such as [-0.87, 0.156]"
    )
    generate: Annotated[int, Field(ge=0)] = Field(description="a whole number of facts, 0 for no texts")
    generate_tokens: AtLeast1 = Field(description="a whole number of tokens, at least 1")
    mixtures: Annotated[int, Field(ge=0)] = Field(description="a whole number of pairs of relations, 0 for none")
    mixture_edits: Annotated[int, Field(ge=2, multiple_of=2)] = Field(
        description="an even whole number of edits, at least 2"
    )
    windows: Several[AtLeast1] = Field(description=_WIDTHS)
    layers: LayerList
    count: AtLeast1 = Field(description="a whole number of facts, at least 1")


class RobustnessParams(Section):
    """The main path's regressions with other settings, one of them at a time."""

    count: AtLeast1 | None = Field(description=_FACTS)
    modules: Several[Module] = Field(description=LIST_OF + ", ".join(MODULES))
    windows: Several[AtLeast1] = Field(description=_WIDTHS)
    multiples: Several[Annotated[float, Field(gt=0)]] = Field(
        description="a list of one or more numbers above 0, such as [1.0, 3.0]"
    )
    corruptions: Several[Corruption] = Field(description=LIST_OF + ", ".join(CORRUPTIONS))
    metrics: Several[Metric] = Field(description=LIST_OF + ", ".join(METRICS))
    measures: Several[TraceMeasure] = Field(description=LIST_OF + ", ".join(TRACE_MEASURES))
    layers: LayerList | None = Field(
        description="null, or a list of different layers counted from 0, such as [0, 4, 8]"
    )
    known: Annotated[
        tuple[Literal["greedy"] | Annotated[float, Field(gt=0, lt=1)], ...],
        Field(strict=False),
        AfterValidator(once_each),
    ] = Field(description="a list, which may be empty, of greedy and of probabilities above 0 and below 1")
    concentrated: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        description="null, or a share of the facts above 0 and below 1"
    )
    success: Annotated[float, Field(gt=0, le=1)] | None = Field(description="null, or a score above 0, at most 1")


class OverrideParams(Section):
    """Whether an edit at one layer overrides what sits at another."""

    count: AtLeast1 | None = Field(description=_FACTS)
    methods: Several[Line] = Field(description=_METHODS)
    problems: Several[_REPLACING] = Field(description=LIST_OF + " and ".join(get_args(_REPLACING)))
    layers: LayerList
    window: AtLeast1 = Field(description="a whole number of layers, at least 1")
    min_change: float = Field(gt=0, lt=1, description="a probability above 0 and below 1")
    min_effect: float = Field(gt=0, lt=1, description="a probability above 0 and below 1")
