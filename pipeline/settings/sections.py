"""The sections of params.yaml, but for those of the editing methods, which pipeline.edit describes."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.settings.fields import (
    HUGE,
    LAYERS,
    LIST_OF,
    MODULES,
    PROBLEMS,
    SCORES,
    TRACE_MEASURES,
    AtLeast0,
    AtLeast1,
    Dtype,
    FactsSource,
    KnownRule,
    LayerList,
    Line,
    Module,
    ModulePath,
    Problem,
    ProjectPath,
    ReversalTarget,
    Score,
    Several,
    TraceMeasure,
    choices,
    cluster_address,
    gpu_share,
    memory_amount,
    memory_text,
    model_name,
    none_or_a_pair,
    once_each,
    parse_memory,
    statistics_text,
)

LocalizerName = Literal[
    "attribution_patching", "gradient_norm", "integrated_gradients", "logit_attribution", "logit_attribution_subject"
]


class Section(BaseModel):
    """A section of params.yaml: complete, strict, and unchangeable once read."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModuleNames(Section):
    """Module paths for a model family that `pipeline.lm.load` does not know."""

    blocks: ModulePath = Field(description="the path of the list of blocks in the model, such as transformer.h")
    attn: ModulePath = Field(description="the path of the attention module in a block, such as attn")
    mlp: ModulePath = Field(description="the path of the MLP module in a block, such as mlp")
    down_proj: ModulePath | None = Field(
        description="the path of the MLP's last linear map in a block, such as mlp.c_proj, or null where it is experts"
    )
    final_norm: ModulePath = Field(description="the path of the last normalization, such as transformer.ln_f")
    head: ModulePath = Field(description="the path of the map from the last block to the vocabulary, such as lm_head")
    mlp_norm: ModulePath | None = Field(
        default=None, description="the path of a norm between MLP and residual stream in a block, or null for none"
    )


class ModelParams(Section):
    """Which model, and how it is held in memory."""

    name: Annotated[Line, AfterValidator(model_name)] = Field(
        description="packaged:NAME, trained:tiny, a local folder (without .., or absolute) or a hub name"
    )
    revision: Line | None = Field(
        description="null, or a branch, tag or commit of the hub as text (in quotes where it is all digits)"
    )
    dtype: Dtype = Field(description=choices(get_args(Dtype)))
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

    rule: KnownRule = Field(description=choices(get_args(KnownRule)))
    within_tokens: AtLeast1 = Field(description="a whole number of tokens, at least 1")
    min_p_true: float = Field(ge=0, lt=1, description="a probability of at least 0 and below 1")


class FactsParams(Section):
    """Which facts, from where, and how many."""

    source: FactsSource = Field(description=choices(get_args(FactsSource)))
    path: ProjectPath = Field(
        description="download, or a folder or file inside the project (without ..), or an absolute path"
    )
    records: AtLeast1 | None = Field(description="a whole number of records, at least 1, or null for all of the file")
    relations: Annotated[tuple[Line, ...], Field(strict=False, min_length=1), AfterValidator(once_each)] | None = Field(
        description="a list of relations of the fact file, or null for all of them"
    )
    count: AtLeast1 | None = Field(description="a whole number of facts, at least 1, or null for all known facts")
    max_paraphrases: AtLeast0 = Field(description="a whole number of prompts, at least 0")
    max_neighborhood: AtLeast0 = Field(description="a whole number of prompts, at least 0")
    max_left_out_share: float = Field(ge=0, le=1, description="a share from 0 to 1")
    known: KnownParams = Field(description="a mapping with the keys rule, within_tokens and min_p_true")


class NoiseParams(Section):
    """The noise on the subject's input embeddings, for tracing and for fact forcing."""

    multiple: float = Field(gt=0, description="a number above 0, in standard deviations of the subjects' embeddings")
    sd: Annotated[float, Field(gt=0)] | None = Field(
        description="null, or a number above 0, in units of the embeddings"
    )
    samples: AtLeast1 = Field(description="a whole number of noise samples, at least 1")

    def in_embedding_units(self, embedding_sd: float) -> float:
        """The noise's standard deviation, given that of the subjects' embeddings."""
        return self.sd if self.sd is not None else self.multiple * embedding_sd


class TraceParams(Section):
    """What causal tracing restores."""

    modules: Several[Module] = Field(description=LIST_OF + ", ".join(MODULES))
    windows: Several[AtLeast1] = Field(
        description="a list of one or more whole numbers of layers, each at least 1, such as [1, 5]"
    )


class LocalizeParams(Section):
    """Which cheaper localizers stand beside causal tracing."""

    methods: Annotated[tuple[LocalizerName, ...], Field(strict=False), AfterValidator(once_each)] = Field(
        description="a list, which may be empty, of " + ", ".join(get_args(LocalizerName))
    )
    gradients: Annotated[int, Field(ge=1, le=1000)] = Field(description="a whole number of gradients, 1 to 1000")


class StatisticsParams(Section):
    """The text for the second moments of the keys, and the context prefixes."""

    text: Annotated[Line, AfterValidator(statistics_text)] = Field(
        description="model, dataset:NAME, or the path of a UTF-8 text file (inside the project, or absolute)"
    )
    tokens: AtLeast1 = Field(description="a whole number of tokens, at least 1")
    sequence_length: Annotated[int, Field(ge=2, le=HUGE)] = Field(description="a whole number of tokens, at least 2")
    temperature: float = Field(gt=0, description="a number above 0")
    ridge: float = Field(ge=0, description="a number of at least 0")
    prefix_lengths: Several[AtLeast1] = Field(
        description="a list of one or more whole numbers of tokens, each at least 1, such as [5, 10]"
    )
    prefixes_per_length: AtLeast0 = Field(description="a whole number of prefixes, at least 0")

    @property
    def text_file(self) -> Path | None:
        """The text file, where `text` names one."""
        return None if self.text == "model" or self.text.startswith("dataset:") else Path(self.text)


class EditParams(Section):
    """Which edits are made."""

    methods: Several[Line] = Field(description=LIST_OF + "the names of editing methods")
    problems: Several[Problem] = Field(description=LIST_OF + ", ".join(PROBLEMS))
    layers: Literal["all"] | Several[AtLeast0] = Field(description=LAYERS)
    layers_by_method: dict[Line, LayerList] = Field(
        description="a mapping of methods to lists of different layers, such as {memit: [0, 4, 8]}"
    )
    forcing_noise_samples: AtLeast1 = Field(description="a whole number of noise samples, at least 1")
    reversal_target: ReversalTarget = Field(description=choices(get_args(ReversalTarget)))
    erasure_min_p: float = Field(ge=0, lt=1, description="a probability of at least 0 and below 1")
    max_failed_share: float = Field(ge=0, le=1, description="a share from 0 to 1")
    text_tokens: Annotated[int, Field(ge=0, le=HUGE), AfterValidator(none_or_a_pair)] = Field(
        description="0, or a whole number of tokens, at least 2"
    )
    collapse_nats: float = Field(gt=0, description="a number above 0, in nats a token")

    def layer_list(self, n_layers: int, method: str | None = None) -> list[int]:
        """The layers to edit in a model of `n_layers` blocks, ascending, counted from 0.

        method: whose; None for those of any method in use.
        """
        general = range(n_layers) if self.layers == "all" else self.layers
        listed = [self.layers_by_method.get(name, general) for name in (self.methods if method is None else [method])]
        return sorted({int(layer) for layers in listed for layer in layers})


class RegressionsParams(Section):
    """Which regressions, and how sure their intervals are."""

    scores: Several[Score] = Field(description=LIST_OF + ", ".join(SCORES))
    trace_measures: Several[TraceMeasure] = Field(description=LIST_OF + ", ".join(TRACE_MEASURES))
    null_layers: Literal["drop", "keep"] = Field(description="drop or keep")
    bootstrap_samples: AtLeast1 = Field(description="a whole number of resamples, at least 1")
    permutations: AtLeast1 = Field(description="a whole number of dealings, at least 1")
    folds: Annotated[int, Field(ge=2, le=1000)] = Field(description="a whole number of folds, 2 to 1000")
    confidence: float = Field(gt=0, lt=1, description="a share above 0 and below 1, such as 0.95")

    @property
    def resampling(self) -> dict[str, Any]:
        """What `pipeline.analysis.profiles.Resampling` wants beside the seed."""
        return {"samples": self.bootstrap_samples, "permutations": self.permutations, "confidence": self.confidence}

    @property
    def keep_null_layers(self) -> bool:
        """Whether layers where a method cannot act are among the rows."""
        return self.null_layers == "keep"

    @property
    def design(self) -> dict[str, Any]:
        """What `pipeline.analysis.regression.Design` wants beside the resampling."""
        return {"keep_null_layers": self.keep_null_layers, "folds": self.folds}


class ReportParams(Section):
    """How the report looks."""

    title: Line = Field(description="one line of text")
    example_fact: Line = Field(description="auto or a fact_id, as text")
    dpi: Annotated[int, Field(ge=50, le=1200)] = Field(description="a whole number of dots per inch, 50 to 1200")


class ComputeParams(Section):
    """How the work is done on this machine; no stage depends on it, as results change by rounding at most."""

    memory: Annotated[int | str, AfterValidator(memory_text)] = Field(
        description='auto, a whole number of bytes, or an amount such as "4GB" or "512MiB"'
    )
    path: Literal["fast", "plain"] = Field(description="fast or plain")
    tf32: bool = Field(description="true or false")
    compile: bool = Field(description="true or false")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = Field(
        description="auto, or a whole number of threads, 1 to 4096"
    )
    engine: Literal["local", "ray"] = Field(description="local or ray")
    address: Annotated[str, AfterValidator(cluster_address)] = Field(description="auto, local or ray://HOST:PORT")
    worker_gpus: Annotated[float, Field(gt=0, le=64), AfterValidator(gpu_share)] = Field(
        description="a share above 0 and up to 1, or a whole number of GPUs up to 64"
    )
    worker_memory: Annotated[int | str, AfterValidator(memory_amount)] | None = Field(
        description='null, a whole number of bytes, or an amount such as "16GB"'
    )
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = Field(
        description="auto, or a whole number of processes, 1 to 4096"
    )
    store: ProjectPath = Field(description="a folder inside the project (without ..), or an absolute path")

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes, or None for auto."""
        return parse_memory(self.memory)

    @property
    def store_is_shared(self) -> bool:
        """Whether the store lies outside the project's folder, where other projects may use it."""
        return not Path(self.store).resolve().is_relative_to(Path.cwd().resolve())

    @property
    def worker_bytes(self) -> int | None:
        """The memory that each worker asks a cluster for, in bytes, or None for nothing asked."""
        return None if self.worker_memory is None else parse_memory(self.worker_memory)
