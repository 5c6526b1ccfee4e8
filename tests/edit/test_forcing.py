"""Fact forcing's noise: new in each prompt and step of editing, and never met again in scoring."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.compute import edit_job
from pipeline.compute.edit_job import EditJob
from pipeline.edit import methods
from pipeline.edit.methods import METHODS
from pipeline.edit.moments import second_moments
from pipeline.edit.value import Prepared
from pipeline.facts.fact import Fact
from pipeline.facts.known import fact_prompt
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import FreshNoise, NoiseTable, subject_noise
from tests.conftest import ROOT
from tests.edit.test_rome import SETTINGS, request_for
from tests.lm.families import random_model

FACT = Fact(
    fact_id="a", relation="capital", subject="France", prompt="The capital of {} is", target_true="Paris",
    target_false="Oslo", paraphrases=("France has its capital in",), neighborhood=("The capital of Peru is",),
    source="made up",
)  # fmt: skip


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return random_model("llama")


@pytest.fixture(scope="module")
def folder(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Second moments of all blocks."""
    ids = torch.randint(5, 200, (40, 16), generator=torch.Generator().manual_seed(0))
    moments = second_moments(lm, [ids], range(lm.n_layers))
    made = tmp_path_factory.mktemp("statistics")
    save_file({str(layer): moment.double() for layer, moment in moments.items()}, made / "moments.safetensors")
    return made


class Watch:
    """Rows of noise (width,) that reach the first block, as text, while the model runs; where `editing` says."""

    def __init__(self, lm: LanguageModel):
        self.lm, self.editing = lm, False
        self.seen: dict[bool, set[str]] = {True: set(), False: set()}
        self.runs: list[set[str]] = []
        self.ids: torch.Tensor | None = None

    def tokens(self, _module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        self.ids = args[0]

    def block(self, _module: torch.nn.Module, args: tuple[torch.Tensor], _kwargs: dict[str, Any]) -> None:
        assert self.ids is not None
        if args[0].shape[:2] == self.ids.shape:
            noise = args[0].detach() - self.lm.arch.embedding.weight[self.ids]
            rows = {str(row.round(decimals=5).tolist()) for row in noise[noise.abs().amax(-1) > 1e-9]}
            self.seen[self.editing] |= rows
            self.runs.append(rows)

    def __enter__(self) -> "Watch":
        self.handles = [
            self.lm.arch.embedding.register_forward_pre_hook(self.tokens),
            self.lm.arch.blocks[0].register_forward_pre_hook(self.block, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def watched(
    lm: LanguageModel,
    folder: Path,
    path: str,
    samples: int,
    steps: int,
    prefixes: int,
    seed: int,
    method: str = "rome",
) -> Watch:
    """What an edit unit of fact forcing adds to the embeddings, in editing and in scoring."""
    params = methods.load(ROOT / "presets" / "smoke.yaml")
    params = params.model_copy(
        update={
            "seed": seed,
            "edit": params.edit.model_copy(update={"forcing_noise_samples": samples, "layers": (0, 2)}),
            "statistics": params.statistics.model_copy(update={"ridge": 1e-4}),
            "compute": params.compute.model_copy(update={"path": path}),
        }
    )
    section = methods.load(ROOT / "presets" / "smoke.yaml").sections[method]
    params._sections[method] = {**section, "steps": steps, "by_problem": {}}
    model = {"layers": lm.n_layers, "fast_path": True, "source": "", "fingerprint": ""}
    texts = ("", *(f"Anna works in {i}. " for i in range(prefixes)))
    job = EditJob(params, model, (FACT,), 0.3, METHODS[method], "fact_forcing", {"source_key": ""}, texts, folder)
    with pytest.MonkeyPatch.context() as patch, Watch(lm) as watch:
        patch.setattr(edit_job, "loaded", lambda params, model: lm)
        edit = edit_job.EditWorker._edit

        def editing(self: Any, request: Any) -> Any:
            watch.editing = True
            try:
                return edit(self, request)
            finally:
                watch.editing = False

        patch.setattr(edit_job.EditWorker, "_edit", editing)
        table = job.worker()(job.units()[0])
    assert set(table["status"].to_pylist()) == {"ok"}
    return watch


@pytest.mark.parametrize("path", ["fast", "plain"])
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_a_draw_of_editing_is_never_one_of_scoring(
    lm: LanguageModel, folder: Path, path: str, samples: int, steps: int, prefixes: int, seed: int
) -> None:
    watch = watched(lm, folder, path, samples, steps, prefixes, seed)
    assert watch.seen[True]
    assert len(watch.seen[False]) >= samples  # the rewrite prompt alone has so many
    assert not watch.seen[True] & watch.seen[False]


def test_each_prompt_and_step_of_editing_has_a_draw_of_its_own(lm: LanguageModel, folder: Path) -> None:
    steps, prefixes = 4, 2
    watch = watched(lm, folder, "fast", 2, steps, prefixes, 0)
    first, end = fact_prompt(lm, FACT).subject or (0, 0)
    assert end > first
    assert len(watch.seen[True]) == steps * (1 + prefixes) * (end - first)


def test_the_draws_of_a_step_are_a_function_of_seed_fact_prompt_and_step(lm: LanguageModel) -> None:
    prompts = request_for(lm).prompts
    noise = FreshNoise(0, "a", 0.5, 32)
    later = noise.table(prompts, 3)
    rows = noise.rows(prompts)
    assert torch.equal(FreshNoise(0, "a", 0.5, 32).table(prompts, 3), later)  # whatever was drawn before
    assert torch.equal(noise.table(prompts[:1], 3), later[: len(noise.table(prompts[:1], 3))])
    assert [[i for i, row in enumerate(of) if row >= 0] for of in rows] == [
        list(range(*prompt.subject)) for prompt in prompts if prompt.subject
    ]
    assert sorted(row for of in rows for row in of if row >= 0) == list(range(len(later)))
    for other in (FreshNoise(1, "a", 0.5, 32), FreshNoise(0, "b", 0.5, 32)):
        assert not torch.isclose(other.table(prompts, 3), later).any()
    assert not torch.isclose(noise.table(prompts, 2), later).any()


def streams() -> Iterator[torch.Tensor]:
    for stream in ("trace", "score"):
        yield subject_noise(0, "a", 6, 3, 16, stream)


def test_streams_share_nothing_and_the_trace_keeps_its_draws() -> None:
    trace, score = streams()
    assert not torch.isclose(trace.reshape(-1, 1), score.reshape(1, -1), atol=1e-9, rtol=0).any()
    first = [0.6279878616333008, 1.5188286304473877, 0.4760613441467285]
    assert subject_noise(0, "a", 1, 1, 3)[0, 0].tolist() == pytest.approx(first, abs=1e-7)


def test_a_draw_that_a_table_does_not_have_is_refused(lm: LanguageModel) -> None:
    table, prompt = NoiseTable(0, "a", 1.0, 2, 32), request_for(lm).prompts[0]
    assert table.rows(prompt, 1) != table.rows(prompt, 0)
    with pytest.raises(ValueError, match="draw 2 of a table of 2"):
        table.rows(prompt, 2)


def test_keys_and_v0_under_noise_are_means_over_the_steps_draws(lm: LanguageModel) -> None:
    request = request_for(lm, noised=True)
    whole = Prepared(lm, request, 5)
    parts = []
    for step in range(5):
        whole.draw(step)
        parts.append((whole.recording.mlp_in[1][0, whole.site_index[:-1]], whole.recording.mlp_out[1][0]))
    site = whole.site(1)
    torch.testing.assert_close(site.keys, torch.stack([keys for keys, _ in parts]).mean(0))
    torch.testing.assert_close(site.v0, torch.stack([out[whole.site_index[0]] for _, out in parts]).mean(0))
    torch.testing.assert_close(site.v0, site.output(site.keys[0]))  # v0 = W k
    assert SETTINGS.steps != 5
    assert (site.v0 - Prepared(lm, request, 4).site(1).v0).abs().max() > 1e-4
