"""The fast path beside the plain one, on one fact: seconds of both, and the largest difference between their numbers.

The plain path is timed on a sample spread over the depth and extrapolated to the whole sweep; the fast path is
timed whole. Every pair that the plain path computes is compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.edit import problems
from pipeline.edit.moments import second_moments
from pipeline.edit.protocol import Edit, EditRequest, Resources
from pipeline.edit.rome import Rome, RomeSettings
from pipeline.edit.value import Prepared
from pipeline.facts import known
from pipeline.facts.choose import KnownRule, choose, of_relations, trim
from pipeline.facts.fact import Fact
from pipeline.facts.readers import read_fact_file
from pipeline.lm.forward import Suffix
from pipeline.lm.memory import budget, rows_within
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import FreshNoise, NoiseTable, embedding_sd
from pipeline.locate.tracing import FactTrace
from pipeline.measure.probabilities import Measurement, questions
from pipeline.settings.params import Params

RIDGE = 0.01  # the benchmark's text is too short for a second moment of full rank
PREFIXES: tuple[str, ...] = ("", "The weather was fine. ", "On the way home they talked about the news. ")


@dataclass
class Row:
    """One line of the table. seconds for the whole sweep of `units`; difference in what `of` names; bound on it."""

    what: str
    plain: float
    fast: float
    difference: float
    of: str
    bound: float
    units: int

    @property
    def ratio(self) -> float:
        return self.plain / self.fast

    @property
    def equal(self) -> bool:
        return self.difference <= self.bound


def together(what: str, rows: Sequence[Row]) -> Row:
    """Several rows of one kind as one: seconds add up, the largest difference stands."""
    first = rows[0]
    return Row(
        what,
        sum(row.plain for row in rows),
        sum(row.fast for row in rows),
        max(row.difference for row in rows),
        first.of,
        first.bound,
        sum(row.units for row in rows),
    )


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """(median seconds, last result)."""
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def known_facts(lm: LanguageModel, params: Params, count: int) -> tuple[list[Fact], float]:
    """The first facts that a run with `params` uses out of a few groups, and the noise's standard deviation."""
    file = of_relations(
        read_fact_file(params.facts.source, Path(params.facts.path), params.seed), params.facts.relations
    )
    some = trim(file.facts[: 4 * known.PACK], params.facts.max_paraphrases, params.facts.max_neighborhood)
    chosen = choose(some, known.measure(lm, some, None), KnownRule(**params.facts.known.model_dump()), count)
    sd = params.noise.in_embedding_units(embedding_sd(lm, (fact.subject for fact in file.facts)))
    return [fact for fact, (kept, _) in zip(some, chosen, strict=True) if kept], sd


def text(lm: LanguageModel, facts: Sequence[Fact], tokens: int, length: int = 64) -> list[torch.Tensor]:
    """Batches of (B, length) token ids from the facts' own prompts, over and over."""
    ids: list[int] = []
    while len(ids) < tokens:
        for fact in facts:
            ids += lm.tokenizer(f"{fact.text} {fact.target_true}. ", add_special_tokens=False)["input_ids"]
    return list(torch.tensor(ids[: tokens // length * length]).reshape(-1, length).split(32))


def compare_moments(
    lm: LanguageModel, batches: Sequence[torch.Tensor], sample: Sequence[int]
) -> tuple[Row, dict[int, Any]]:
    """Second moments of all blocks in one pass against one whole pass a block, as published code takes them."""
    fast, moments = timed(lambda: second_moments(lm, batches, range(lm.n_layers)), 3)
    seconds, worst = [], 0.0
    for layer in sample:
        parts: list[torch.Tensor] = []

        def keep(_module: Any, args: tuple[torch.Tensor], parts: list[torch.Tensor] = parts) -> None:
            keys = args[0].reshape(-1, args[0].shape[-1])
            parts.append(keys.T @ keys)

        def whole_pass(layer: int = layer, keep: Any = keep, parts: list[torch.Tensor] = parts) -> None:
            parts.clear()
            handle = lm.arch.down_projs[layer].register_forward_pre_hook(keep)
            with torch.no_grad():
                for batch in batches:
                    lm.model(input_ids=batch.to(lm.device), use_cache=False)
            handle.remove()

        took, _ = timed(whole_pass)
        seconds.append(took)
        plain = sum(parts).cpu() / sum(batch.numel() for batch in batches)  # type: ignore[union-attr]
        worst = max(worst, float((plain - moments[layer]).norm() / plain.norm()))
    plain_seconds = statistics.median(seconds) * lm.n_layers
    return Row(
        f"second moments, {lm.n_layers} blocks", plain_seconds, fast, worst, "relative C", 1e-4, lm.n_layers
    ), moments


def compare_trace(lm: LanguageModel, fact: Fact, sd: float, samples: int, cells: int, bound: float = 1e-4) -> Row:
    """Tracing of one fact, MLP, window 5: every token from the subject on, every layer."""
    noise = NoiseTable(0, fact.fact_id, sd, samples, lm.embedding_width)
    prompt = known.fact_prompt(lm, fact)
    memory = budget(None, lm.device, gradient=False)
    rows = rows_within(lm, memory, len(prompt.reads) * prompt.target_start, gradient=False)

    def fast() -> Any:
        traced = FactTrace(lm, prompt, noise, samples)
        return traced, traced.fast("mlp", 5, rows)

    seconds, (traced, trace) = timed(fast, 3)
    assert prompt.subject is not None
    tokens = range(prompt.subject[0], prompt.target_start)
    spread = np.linspace(0, len(tokens) * lm.n_layers - 1, cells).astype(int)
    plain, worst = [], 0.0
    for cell in spread:
        token, layer = tokens[cell // lm.n_layers], int(cell % lm.n_layers)
        took, restored = timed(lambda token=token, layer=layer: traced.plain_cell("mlp", 5, token, layer))  # type: ignore[misc]
        plain.append(took)
        worst = max(worst, abs(restored - float(trace.restored[token, layer])))
    whole = statistics.mean(plain) * len(tokens) * lm.n_layers
    name = f"tracing, {len(tokens)} tokens x {lm.n_layers} layers"
    return Row(name, whole, seconds, worst, "probability", bound, len(tokens) * lm.n_layers)


@dataclass(frozen=True)
class Case:
    """One problem of the fact, ready to be edited and scored."""

    problem: str
    request: EditRequest
    measurement: Measurement


def cases(lm: LanguageModel, params: Params, fact: Fact, sd: float, names: Sequence[str]) -> list[Case]:
    """The requests and measurements of each problem, with the prompts of a default run."""
    result = []
    for name in names:
        problem = problems.PROBLEMS[name]
        of, draws = (params.seed, fact.fact_id, sd), params.edit.forcing_noise_samples if problem.noised else 0
        o_noise = None
        if problem.target == "noise":
            noise = NoiseTable(*of, params.noise.samples, lm.embedding_width)
            o_noise = problems.noised_answer(lm, known.fact_prompt(lm, fact), noise, params.noise.samples)
        target, baseline = problems.objects(problem, fact, o_noise)
        if target == baseline:  # what the run drops; for a timing any other object does
            target = fact.target_false
        editing = FreshNoise(*of, lm.embedding_width) if problem.noised else None
        scoring = NoiseTable(*of, draws, lm.embedding_width, "score") if problem.noised else None
        request = problems.edit_request(lm, problem, fact, target, PREFIXES, editing, baseline)
        asked = questions(lm, fact, target, baseline, draws)
        result.append(Case(name, request, Measurement(lm, asked, scoring)))
    return result


def editor(params: Params, problem: str, resources: Resources, layers: Sequence[int]) -> Rome:
    """ROME with its second moments factored, so that no time is taken for that later."""
    rome = Rome(RomeSettings(**params.for_problem("rome", problem)), resources)
    for layer in layers:
        rome.whiteners.of(layer)
    return rome


def compare_edits(
    lm: LanguageModel,
    params: Params,
    work: Sequence[Case],
    resources: Resources,
    layers: Sequence[int],
    sample: int,
    bounds: tuple[float, float] = (1e-3, 1e-3),
) -> tuple[Row, Row, list[str]]:
    """ROME at `layers` for each case, and scoring; the plain path on `sample` edits spread over depth and problems.

    Returns the rows of editing and of scoring, and a line for each sampled edit whose v* differs by more than its
    bound.
    """
    memory = budget(None, lm.device, gradient=True), budget(None, lm.device, gradient=False)
    edit_seconds = score_seconds = 0.0
    edits: dict[str, list[Edit]] = {}
    after: dict[str, np.ndarray] = {}
    for case in work:
        rome = editor(params, case.problem, resources, layers)
        took, edits[case.problem] = timed(lambda rome=rome, case=case: rome.edit(lm, case.request, layers, memory[0]))  # type: ignore[misc]
        edit_seconds += took

        def rows(suffix: Suffix, case: Case = case) -> int:
            return rows_within(lm, memory[1], len(case.measurement.nodes), gradient=False)(suffix)

        took, after[case.problem] = timed(
            lambda case=case, rows=rows: case.measurement.after(edits[case.problem], rows)  # type: ignore[misc]
        )
        score_seconds += took
    plain_edit, plain_score, worst_value, worst_p, odd = [], [], 0.0, 0.0, []
    for i, at in enumerate(np.linspace(0, len(layers) - 2, sample).astype(int)):
        case = work[i % len(work)]
        rome = editor(params, case.problem, replace(resources, path="plain"), [layers[at]])
        took, (slow,) = timed(lambda rome=rome, case=case, at=at: rome.edit(lm, case.request, [layers[at]]))  # type: ignore[misc]
        plain_edit.append(took)
        fast = edits[case.problem][at]
        difference = value_difference(lm, case.request, fast, slow)
        if difference > bounds[0]:
            odd.append(f"{case.problem}, block {layers[at]}: v* differs by {difference:.1e}")
        worst_value = max(worst_value, difference)
        took, probabilities = timed(lambda case=case, slow=slow: case.measurement.plain(slow))  # type: ignore[misc]
        plain_score.append(took)
        worst_p = max(worst_p, float(np.abs(probabilities - after[case.problem][at]).max()))
    count = len(work) * len(layers)
    edit_row = Row(
        f"ROME, {len(layers)} blocks x {len(work)} problems",
        statistics.mean(plain_edit) * count,
        edit_seconds,
        worst_value,
        "relative v*",
        bounds[0],
        count,
    )
    score_row = Row(
        "scoring of those",
        statistics.mean(plain_score) * count,
        score_seconds,
        worst_p,
        "probability",
        bounds[1],
        count,
    )
    return edit_row, score_row, odd


def optimisation_flops(lm: LanguageModel, work: Sequence[Case], layers: Sequence[int], steps: int) -> float:
    """Multiplications and additions of the fast path's optimisation, matrix products alone.

    A live token costs two operations a weight of each block above the edit forward and as many backward, a read
    position as many a weight of the head.
    """
    block = sum(p.numel() for p in lm.arch.blocks[0].parameters() if p.ndim == 2)
    head = lm.arch.head.weight.numel()
    total = 0.0
    for case in work:
        prompts = case.request.prompts
        live = sum(len(prompt.ids) - 1 - prompt.last_subject for prompt in prompts) + 1
        reads = sum(len(prompt.reads) for prompt in prompts) + 1
        above = sum(lm.n_layers - 1 - layer for layer in layers)
        total += 4.0 * steps * (live * block * above + reads * head * len(layers))
    return total


def value_difference(lm: LanguageModel, request: EditRequest, one: Edit, other: Edit) -> float:
    """|v*_one - v*_other| / |v*_other|, with v* = v0 + left (right . k) for the bare prompt's key k."""
    bare = replace(request, prompts=request.prompts[:1])
    site = Prepared(lm, bare).site(one.layer)
    values = [site.v0.double() + sum(u.output(site.keys[0].double()) for u in e.updates) for e in (one, other)]
    return float((values[0] - values[1]).norm() / values[1].norm())
