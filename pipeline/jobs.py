"""The units of the three long stages: known facts, traces and edits. Each says what its result depends on and how
to compute it.

A unit's key holds the model's fingerprint, the fact's own text, the settings that matter and the version of the
code that computes it, so that a result is found again exactly when it would come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import torch
from safetensors import safe_open

from pipeline import known, models, problems
from pipeline.covariance import Whitener
from pipeline.editors.base import Edit, EditRequest, failed
from pipeline.editors.rome import Rome, RomeSettings
from pipeline.engine import Unit, cores
from pipeline.errors import UserError
from pipeline.facts import Fact, Known
from pipeline.forward import Suffix
from pipeline.measure import Measurement, Question, edit_frame, prompt_kinds, questions
from pipeline.memory import budget, halving, rows_within
from pipeline.models import LanguageModel
from pipeline.noise import NoiseTable
from pipeline.params import Params
from pipeline.prompts import tokenize
from pipeline.store import Store, code_version
from pipeline.tables import to_arrow
from pipeline.tracing import FactTrace

_SHARED = ("pipeline.models", "pipeline.prompts", "pipeline.forward", "pipeline.jobs", "pipeline.known")


def common(params: Params, model: dict[str, Any], *modules: str) -> dict[str, Any]:
    """What every unit depends on: the model as it is loaded, and the code."""
    return {
        "model": model["fingerprint"],
        "dtype": params.model.dtype,
        "add_bos": params.model.add_bos,
        "path": path(params, model),
        "tf32": params.compute.tf32,
        "code": code_version(*_SHARED, *modules),
    }


def path(params: Params, model: dict[str, Any]) -> str:
    """fast or plain: what params ask for, where the model can be run from the middle."""
    return params.compute.path if model["fast_path"] else "plain"


def set_up(params: Params, *, alone: bool = False) -> LanguageModel:
    """The model, and torch as params' `compute` wants it.

    alone: this process is the stage's only one, and takes the threads of all workers.
    """
    workers, threads = crew(params)
    torch.set_num_threads(max(threads, min(threads * workers, cores())) if alone else threads)
    torch.backends.cuda.matmul.allow_tf32 = params.compute.tf32
    torch.backends.cudnn.allow_tf32 = params.compute.tf32
    lm = models.load(params.model, params.seed)
    if params.compute.compile:
        for block in lm.arch.blocks:
            block.compile(dynamic=True)
    return lm


def crew(params: Params) -> tuple[int, int]:
    """(workers, threads of each): one worker a GPU, or on a CPU one a core as far as memory allows.

    Neither depends on how much work there is, so that results do not either.
    """
    compute, device = params.compute, models.pick_device(params.model.device)
    if params.model.device_map is not None or device.type == "mps" or device.index is not None:
        auto = 1
    elif device.type == "cuda":
        auto = torch.cuda.device_count()
    else:
        auto = max(1, min(cores(), int(CREW_SHARE * psutil.virtual_memory().total / WORKER_BYTES)))
    workers = auto if compute.workers == "auto" else compute.workers
    threads = max(1, cores() // workers) if compute.threads == "auto" else compute.threads
    return workers, threads


WORKER_BYTES = 3 * 1024**3  # of a worker with the embedded model, amply; larger models: set compute.workers
CREW_SHARE = 0.8


@dataclass(frozen=True)
class KnownJob:
    """What the model knows of each fact; a unit is a group of facts that are run together."""

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    step = "known"
    noun = "groups of facts"

    def units(self) -> Sequence[Unit]:
        settings = self.params.facts.known
        depends = common(self.params, self.model)
        within = settings.within_tokens if settings.rule == "within" else None
        units = []
        for low in range(0, len(self.facts), known.PACK):
            group = self.facts[low : low + known.PACK]
            texts = [[fact.prompt, fact.subject, fact.target_true] for fact in group]
            key = Store.key(**depends, step=self.step, facts=texts, within=within)
            units.append(Unit(key, f"facts {low} to {low + len(group) - 1}", (group, within)))
        return units

    def worker(self) -> Callable[[Unit], pa.Table]:
        lm = set_up(self.params)

        def compute(unit: Unit) -> pa.Table:
            group, within = unit.item
            return to_arrow(pd.DataFrame([asdict(entry) for entry in known.measure(lm, group, within)]))

        return compute

    @staticmethod
    def read(table: pa.Table) -> list[Known]:
        return [Known(**row) for row in table.to_pylist()]


def noise_sd(params: Params, embedding_sd: float) -> float:
    """Standard deviation of the noise in embedding units."""
    return params.noise.sd if params.noise.sd is not None else params.noise.multiple * embedding_sd


@dataclass(frozen=True)
class TraceJob:
    """Causal traces; a unit is one fact, module and window."""

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    sd: float
    step = "trace"
    noun = "traces"

    def units(self) -> Sequence[Unit]:
        modules = ("noise", "plain", "seeds", "tracing")
        depends = common(self.params, self.model, *(f"pipeline.{name}" for name in modules))
        depends |= {"seed": self.params.seed, "sd": self.sd, "samples": self.params.noise.samples}
        return [
            Unit(
                Store.key(
                    **depends, step=self.step, module=module, window=window,
                    fact=[fact.fact_id, fact.prompt, fact.subject, fact.target_true],
                ),
                f"{fact.fact_id} {module} window {window}",
                (fact, module, window),
            )
            for fact in self.facts
            for module in self.params.trace.modules
            for window in self.params.trace.windows
        ]  # fmt: skip

    def worker(self) -> Callable[[Unit], pa.Table]:
        lm, params = set_up(self.params), self.params
        memory = budget(params.compute.memory_bytes, lm.device, gradient=False)
        last: dict[str, FactTrace] = {}  # the two runs of a fact serve all its modules and windows

        def compute(unit: Unit) -> pa.Table:
            fact, module, window = unit.item
            if fact.fact_id not in last:
                last.clear()
                noise = NoiseTable(params.seed, fact.fact_id, self.sd, params.noise.samples, embedding_width(lm))
                last[fact.fact_id] = FactTrace(lm, known.fact_prompt(lm, fact), noise, params.noise.samples)
            traced = last[fact.fact_id]
            if path(params, self.model) == "plain":
                trace = traced.plain(module, window)
            else:
                reads = len(traced.prompt.reads) * traced.prompt.target_start

                def work(allowed: int) -> Any:
                    return traced.fast(module, window, rows_within(lm, allowed, reads, gradient=False))

                trace = halving(work, memory)
            return to_arrow(traced.frame(fact.fact_id, module, window, trace))

        return compute


def embedding_width(lm: LanguageModel) -> int:
    """Width of the input embeddings, to which noise is added."""
    return int(lm.arch.embedding.weight.shape[1])


def rome_settings(params: Params, problem: str) -> RomeSettings:
    """The `rome` section with what its by_problem says for `problem`."""
    return RomeSettings(**params.rome.for_problem(problem).model_dump(exclude={"by_problem"}))


@dataclass(frozen=True)
class EditJob:
    """Edits of every layer with their scores' probabilities; a unit is one fact.

    statistics: the manifest of the statistics stage; prefixes: its context prefixes; folder: where its second
    moments are.
    """

    params: Params
    model: dict[str, Any]
    facts: tuple[Fact, ...]
    sd: float
    method: str
    problem: str
    statistics: dict[str, Any]
    prefixes: tuple[str, ...]
    folder: Path

    @property
    def step(self) -> str:
        return f"edit-{self.method}-{self.problem}"

    noun = "facts"

    @property
    def layers(self) -> list[int]:
        return self.params.edit.layer_list(self.model["layers"])

    def units(self) -> Sequence[Unit]:
        params, problem = self.params, problems.PROBLEMS[self.problem]
        modules = [
            "editors.base",
            f"editors.{self.method}",
            "covariance",
            "measure",
            "noise",
            "plain",
            "problems",
            "seeds",
        ]
        depends = common(params, self.model, *(f"pipeline.{name}" for name in modules))
        depends |= {
            "problem": self.problem,
            "settings": asdict(rome_settings(params, self.problem)),
            "layers": self.layers,
            "statistics": self.statistics["key"],
            "prefixes": self.prefixes,
            "ridge": params.statistics.ridge,
        }
        if problem.target == "noise":
            depends |= {"seed": params.seed, "sd": self.sd, "samples": params.noise.samples}
        if problem.noised:
            depends |= {"seed": params.seed, "sd": self.sd, "samples": params.edit.forcing_noise_samples}
        if problem.minimise:
            depends["min_p"] = params.edit.erasure_min_p
        return [
            Unit(Store.key(**depends, step=self.step, fact=asdict(fact)), fact.fact_id, fact) for fact in self.facts
        ]

    def worker(self) -> Callable[[Unit], pa.Table]:
        worker = _EditWorker(self, set_up(self.params))
        return lambda unit: to_arrow(worker.frame(unit.item))


def edit_request(
    lm: LanguageModel,
    problem: problems.Problem,
    fact: Fact,
    target: str,
    prefixes: Sequence[str],
    noise: NoiseTable | None,
) -> EditRequest:
    """The fact's prompt after each of `prefixes`, and "{subject} is a", tokenized for an editor."""
    prompts = tuple(
        tokenize(
            lm.tokenizer,
            prefix + fact.text,
            subject=fact.subject,
            subject_at=len(prefix) + fact.subject_at,
            target=target,
            add_bos=lm.add_bos,
        )
        for prefix in prefixes
    )
    essence = tokenize(lm.tokenizer, f"{fact.subject} is a", subject=fact.subject, subject_at=0, add_bos=lm.add_bos)
    return EditRequest(fact.fact_id, prompts, essence, noise, problem.minimise)


class _EditWorker:
    """Edits facts one after the other with one model."""

    def __init__(self, job: EditJob, lm: LanguageModel):
        self.job, self.lm, self.params = job, lm, job.params
        self.problem = problems.PROBLEMS[job.problem]
        self.path = path(self.params, job.model)
        self.whiteners = {layer: self._whitener(layer) for layer in job.layers}

    def _whitener(self, layer: int) -> Whitener | UserError:
        name = f"block {layer} in {self.job.folder / 'moments.safetensors'}"
        try:
            with safe_open(self.job.folder / "moments.safetensors", framework="pt") as file:
                moment = file.get_tensor(str(layer))
            return Whitener(moment.to(self.lm.device), self.params.statistics.ridge, f"the second moment of {name}")
        except UserError as error:
            return error

    def frame(self, fact: Fact) -> pd.DataFrame:
        """data/edits' rows of one fact; a fact that cannot be edited has rows that say why."""
        target = baseline = ""
        try:
            noise = NoiseTable(self.params.seed, fact.fact_id, self.job.sd, self._draws(), embedding_width(self.lm))
            prompt = known.fact_prompt(self.lm, fact)
            o_noise = None
            if self.problem.target == "noise":
                o_noise = problems.noised_answer(self.lm, prompt, noise, self.params.noise.samples)
            target, baseline = problems.objects(self.problem, fact, o_noise)
            if not target:
                raise _NotEdited("dropped: under noise the model goes on with no word")
            if o_noise is not None and problems.same_answer(o_noise, fact.target_true):
                raise _NotEdited("dropped: under noise the model still says target_true")
            forcing = self.params.edit.forcing_noise_samples if self.problem.noised else 0
            asked = questions(self.lm, fact, target, baseline, forcing)
            used = noise if self.problem.noised else None
            measurement = Measurement(self.lm, asked, used)
            before = measurement.before()
            if self.problem.minimise and before[0, 0] < self.params.edit.erasure_min_p:
                raise _NotEdited(f"dropped: p(true) is below {self.params.edit.erasure_min_p:g}")
            edits = self._edit(edit_request(self.lm, self.problem, fact, target, self.job.prefixes, used))
            after = self._after(measurement, edits, asked)
        except (UserError, _NotEdited) as error:
            reason = str(error) if isinstance(error, _NotEdited) else f"failed: {error}"
            edits = [failed(layer, reason) for layer in self.job.layers]
            kinds = prompt_kinds(fact)
            before, after = np.full((len(kinds), 2), np.nan), np.full((len(edits), len(kinds), 2), np.nan)
        edits = [_checked(edit, after[e]) for e, edit in enumerate(edits)]
        return edit_frame(fact, self.job.problem, self.job.method, 1, target, baseline, before, edits, after)

    def _draws(self) -> int:
        return self.params.edit.forcing_noise_samples if self.problem.noised else self.params.noise.samples

    def _edit(self, request: EditRequest) -> list[Edit]:
        settings = rome_settings(self.params, self.job.problem)
        reads = sum(len(prompt.reads) for prompt in request.prompts) + 1

        def work(allowed: int) -> list[Edit]:
            rows = rows_within(self.lm, allowed, reads, gradient=True)
            return Rome(settings, self.whiteners, self.path, rows).edit(self.lm, request, self.job.layers)

        return halving(work, self._memory(gradient=True))

    def _memory(self, *, gradient: bool) -> int:
        return budget(self.params.compute.memory_bytes, self.lm.device, gradient=gradient)

    def _after(self, measurement: Measurement, edits: Sequence[Edit], asked: Sequence[Question]) -> np.ndarray:
        if self.path == "plain":
            blank = np.full((len(asked), 2), np.nan)
            return np.stack([measurement.plain(edit) if edit.updates else blank for edit in edits])

        def work(allowed: int) -> np.ndarray:
            def rows(suffix: Suffix) -> int:
                return rows_within(self.lm, allowed, len(measurement.nodes), gradient=False)(suffix)

            return measurement.after(edits, rows)

        return halving(work, self._memory(gradient=False))


class _NotEdited(Exception):
    """A fact that the problem leaves out, with the reason."""


def _checked(edit: Edit, after: np.ndarray) -> Edit:
    """The edit, marked as failed where its probabilities are no numbers."""
    if edit.status == "ok" and not np.isfinite(after).all():
        return replace(edit, status="failed: a probability after the edit is not a number")
    return edit
