"""Every family, known by name or by module paths alone: all that is measured is what the model's own forward gives,
one whole prompt at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.compute.known_job import KnownJob
from pipeline.compute.trace_job import TraceJob
from pipeline.edit import methods, problems
from pipeline.edit.protocol import Resources
from pipeline.edit.rome import Rome
from pipeline.errors import UserError
from pipeline.facts import known
from pipeline.lm import forward, plain
from pipeline.lm.families import FAMILIES
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.lm.prompts import Prompt
from pipeline.locate.tracing import FactTrace, Trace
from pipeline.measure.edited import applied
from pipeline.measure.probabilities import Measurement, questions
from pipeline.settings.fields import MODULES
from tests.conftest import ROOT
from tests.edit.test_rome import SETTINGS, request_for, resources_for
from tests.lm.abilities import README, table, with_table
from tests.lm.families import CONFIGS, EXPERTS, FAST, random_model
from tests.measure.test_probabilities import FACT

SAMPLES = 2
# Scaled logits and positions that are not the tokens': such a family must be run as the model itself runs.
STRANGE = ("granite", "cohere", "cohere2", "falcon-alibi", "bloom", "mpt")
# transformers computes these families' softmax, or their router's, in float32 whatever the model's type is.
BOUND = dict.fromkeys(CONFIGS, 1e-8) | dict.fromkeys(("gemma2", "bloom", "mpt", *EXPERTS), 1e-4)


@pytest.fixture(
    params=[(family, named) for named in (False, True) for family in CONFIGS], ids=lambda p: f"{p[0]}-{p[1]}"
)
def case(request: pytest.FixtureRequest) -> tuple[LanguageModel, float]:
    """A model, known by name or by module paths alone, and how near its numbers must be, relative."""
    family, named = request.param
    return random_model(family, named=named), BOUND[family]


@torch.no_grad()
def own(lm: LanguageModel, prompt: Prompt) -> float:
    """The target's probability after the prompt, by the model as it comes."""
    logs = lm.model(input_ids=torch.tensor([prompt.ids])).logits[0].double().log_softmax(-1)
    return float(sum(logs[read, token] for read, token in zip(prompt.reads, prompt.target_ids, strict=True)).exp())


@contextmanager
def put_in(module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Within: `change` is made to what the module gives, (1, T, d)."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        whole = forward.first(output)
        changed = change(whole.clone().reshape(1, -1, whole.shape[-1])).reshape(whole.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_families_whose_forward_is_proven_are_fast_and_others_are_not() -> None:
    assert [family for family in CONFIGS if random_model(family).fast] == FAST
    named = [family for family in CONFIGS if random_model(family, named=True).fast]
    assert named == [family for family in FAST if family not in STRANGE]
    assert {name.split("-")[0] for name in CONFIGS} == set(FAMILIES)


def test_known(case: tuple[LanguageModel, float]) -> None:
    lm, bound = case
    facts = [FACT, known_fact("Peru", "Lima and Rome"), known_fact("Oslo", "a painter")]
    found = known.measure(lm, facts, None)
    for fact, measured in zip(facts, found, strict=True):
        assert measured.p_true == pytest.approx(own(lm, known.fact_prompt(lm, fact)), rel=bound)


def known_fact(subject: str, target: str) -> Any:
    return type(FACT)(**asdict(FACT) | {"fact_id": subject, "subject": subject, "target_true": target})


@pytest.mark.parametrize("module", MODULES)
def test_trace(case: tuple[LanguageModel, float], module: str) -> None:
    lm, bound = case
    noise = NoiseTable(0, "a", 0.5, SAMPLES, lm.embedding_width)
    prompt = known.fact_prompt(lm, FACT)
    fact = FactTrace(lm, prompt, noise, SAMPLES)
    trace: Trace = (fact.fast if lm.fast else fact.plain)(module, 2)
    assert trace.p_clean == pytest.approx(own(lm, prompt), rel=bound)
    rows = [noise.rows(prompt, draw) for draw in range(SAMPLES)]
    noised = [torch.stack([noise.table[r] if r >= 0 else torch.zeros(lm.embedding_width) for r in row]) for row in rows]
    modules = {"mlp": lm.arch.mlp_ends, "attn": lm.arch.attns, "hidden": lm.arch.blocks}[module]

    def corrupted(token: int | None = None, layers: range = range(0)) -> float:
        clean = []
        for at in layers:
            seen: list[torch.Tensor] = []
            with put_in(modules[at], lambda h, seen=seen: seen.append(h[0].clone()) or h):  # type: ignore[misc]
                own(lm, prompt)
            clean.append(seen[0])
        total = 0.0
        for draw in noised:
            with ExitStack() as stack:
                stack.enter_context(put_in(lm.arch.embedding, lambda h, draw=draw: h + draw))  # type: ignore[misc]
                for at, value in zip(layers, clean, strict=True):

                    def back(h: torch.Tensor, value: torch.Tensor = value) -> torch.Tensor:
                        h[0, token] = value[token]
                        return h

                    stack.enter_context(put_in(modules[at], back))
                total += own(lm, prompt) / SAMPLES
        return total

    assert trace.p_corrupt == pytest.approx(corrupted(), rel=bound)
    assert abs(trace.p_clean - trace.p_corrupt) > 1e-3 * trace.p_clean  # noise does something at all
    for token, layer in ((prompt.last_subject, 1), (prompt.target_start - 1, 2), (prompt.last_subject, 3)):
        layers = range(layer - 1, layer + 1)  # the window of 2
        assert trace.restored[token, layer] == pytest.approx(corrupted(token, layers), rel=bound)


@pytest.mark.parametrize("noised", [False, True])
def test_edit_probabilities(case: tuple[LanguageModel, float], noised: bool) -> None:
    lm, bound = case
    if not lm.arch.has_down_projs:
        pytest.skip("experts: see below")
    noise = NoiseTable(0, "a", 0.3, SAMPLES, lm.embedding_width) if noised else None
    asked = questions(lm, FACT, "Oslo", "Paris", SAMPLES if noised else 0)
    measurement = Measurement(lm, asked, noise)
    path = "fast" if lm.fast else "plain"
    few = SETTINGS if lm.fast else type(SETTINGS)(**asdict(SETTINGS) | {"steps": 3})
    (edit,) = Rome(few, resources_for(lm, path)).edit(lm, request_for(lm), [1])
    after = measurement.after([edit])[0] if lm.fast else measurement.plain(edit)

    def expected() -> np.ndarray:
        rows = []
        for question in asked:
            for prompt in (question.target, question.baseline):
                found = []
                for draw in question.draws or (-1,):
                    row = noise.rows(prompt, draw) if noise and draw >= 0 else [-1] * len(prompt.ids)
                    spread = torch.stack(
                        [noise.table[r] if noise and r >= 0 else torch.zeros(lm.embedding_width) for r in row]
                    )
                    with put_in(lm.arch.embedding, lambda h, spread=spread: h + spread):  # type: ignore[misc]
                        found.append(own(lm, prompt))
                rows.append(np.mean(found))
        return np.array(rows).reshape(-1, 2)

    assert measurement.before() == pytest.approx(expected(), rel=bound)
    with applied(lm, edit):
        edited = expected()
    assert after == pytest.approx(edited, rel=bound)
    assert np.abs(edited - expected()).max() > 1e-3 * edited.max()


def test_what_the_noised_model_says(case: tuple[LanguageModel, float]) -> None:
    lm, bound = case
    ids = [5, 6, 7, 8]
    noise = torch.randn(3, 4, lm.embedding_width, generator=torch.Generator().manual_seed(0)).double()
    found = (forward if lm.fast else plain).last_logits(lm, ids, noise).softmax(-1)
    for sample, probabilities in zip(noise, found, strict=True):
        with put_in(lm.arch.embedding, lambda h, sample=sample: h + sample), torch.no_grad():  # type: ignore[misc]
            alone = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
        assert probabilities.numpy() == pytest.approx(alone.numpy(), rel=bound)


def test_the_noised_answer_is_asked_of_the_models_own_forward_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_model("mpt")
    monkeypatch.setattr(forward, "record", None)  # a resumed forward would fail
    noise = NoiseTable(0, "a", 0.5, SAMPLES, lm.embedding_width)
    assert problems.noised_answer(lm, known.fact_prompt(lm, FACT), noise, SAMPLES).isprintable()


@pytest.mark.parametrize("family", EXPERTS)
def test_rome_says_that_experts_have_no_single_down_projection(family: str) -> None:
    lm = random_model(family)
    resources = Resources(lambda layer: torch.eye(4))
    for path in ("fast", "plain"):
        with pytest.raises(UserError, match="experts and has no single down-projection that ROME could edit"):
            Rome(SETTINGS, Resources(resources.moment, path=path)).edit(lm, request_for(lm), [1])
    assert lm.describe()["key_size"] == 0


def test_jobs_take_the_models_own_forward_where_model_json_says_so(tmp_path: Path) -> None:
    """MPT's ALiBi, packed, gave wrong probabilities whatever the stage `model` had found."""
    lm = random_model("mpt", torch.float32, named=True)
    lm.model.config.model_type = "mpt"
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    settings = methods.load(ROOT / "presets" / "smoke.yaml")
    named = {"name": str(tmp_path / "model"), "device": "cpu", "names": None}
    settings = settings.model_copy(update={"model": settings.model.model_copy(update=named)})
    model = {"fingerprint": "m", "source": str(tmp_path / "model"), "layers": 4, "fast_path": lm.fast}
    facts = (FACT, known_fact("Peru", "Rome"))
    job = KnownJob(settings, model, facts)
    (unit,) = job.units()
    prompts = [known.fact_prompt(lm, fact) for fact in facts]
    found = [entry.p_true for entry in job.read(job.worker()(unit))]
    assert found == pytest.approx([own(lm, prompt) for prompt in prompts], rel=1e-3)
    tracing = TraceJob(settings, model, facts, 0.5)
    table = tracing.worker()(tracing.units()[0]).to_pandas()
    assert table.p_clean[0] == pytest.approx(own(lm, prompts[0]), rel=1e-3)


def test_the_readmes_table_is_what_the_families_can_do() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_table(text, table()), "run `python -m tests.lm.abilities` to write the table anew"
