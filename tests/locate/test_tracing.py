"""Tracing: its limits, its fast path against the plain one, and what windows, roles and fractions are."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lm.model import LanguageModel, window_range
from pipeline.lm.noise import NoiseTable, embedding_sd, subject_noise
from pipeline.lm.prompts import Prompt, tokenize
from pipeline.locate.tracing import FactTrace, Trace, token_roles
from pipeline.settings.fields import MODULES
from tests.lm.families import EXPERTS, FAST, random_model

SAMPLES = 3


@pytest.fixture(params=FAST)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return random_model(request.param)


def prompt_of(lm: LanguageModel, text: str = "The capital of Anna Berg is", subject: str = "Anna Berg") -> Prompt:
    return tokenize(lm.tokenizer, text, subject=subject, target="Oslo now", add_bos=False)


def traced(lm: LanguageModel, samples: int = SAMPLES) -> FactTrace:
    noise = NoiseTable(0, "a", 0.5, samples, lm.arch.embedding.weight.shape[1])
    return FactTrace(lm, prompt_of(lm), noise, samples)


@pytest.mark.parametrize("module", MODULES)
def test_fast_equals_plain(lm: LanguageModel, module: str) -> None:
    # transformers computes these families' softmax, or their router, in float32.
    bound = 1e-6 if lm.arch.config.model_type in ("gemma2", *EXPERTS) else 1e-9
    fact = traced(lm)
    for window in (1, 2, 3):
        fast, plain = fact.fast(module, window), fact.plain(module, window)
        assert np.abs(fast.restored - plain.restored).max() < bound * plain.restored.max()
        # The target's probability must move at all for this to mean anything.
        assert np.ptp(plain.restored) > 1e-3 * plain.p_clean


def test_rows_at_once_do_not_matter() -> None:
    fact = traced(random_model("llama"))
    whole = fact.fast("mlp", 3).restored
    assert np.abs(fact.fast("mlp", 3, rows=lambda suffix: 1).restored - whole).max() < 1e-9 * whole.max()


def test_restoring_every_layer_gives_the_clean_probability(lm: LanguageModel) -> None:
    noise = NoiseTable(0, "a", 0.5, SAMPLES, lm.arch.embedding.weight.shape[1])
    prompt = tokenize(lm.tokenizer, "The capital of Peru is", subject="Peru", target="Oslo", add_bos=False)
    ids = prompt.ids[: prompt.target_start + 1]  # later target tokens would see the noise again
    one = Prompt(ids, prompt.target_start, (prompt.last_subject, prompt.last_subject + 1), prompt.text)
    fact = FactTrace(lm, one, noise, SAMPLES)
    restored = fact.fast("hidden", 2 * lm.n_layers).restored
    # The last token's own hidden state at every layer is all that the prediction reads.
    assert restored[-1] == pytest.approx(np.full(lm.n_layers, fact.p_clean), rel=1e-4)
    assert abs(fact.p_clean - fact.p_corrupt) > 1e-3 * fact.p_clean


def test_restoring_nothing_gives_the_corrupted_probability(lm: LanguageModel) -> None:
    fact = traced(lm)
    assert fact.prompt.subject is not None
    trace = fact.fast("mlp", 3)
    assert (trace.restored[: fact.prompt.subject[0]] == trace.p_corrupt).all()
    assert trace.p_corrupt == pytest.approx(fact.p_corrupt, rel=1e-5)
    assert trace.p_clean == pytest.approx(fact.p_clean, rel=1e-5)


def test_noise_does_not_depend_on_how_many_samples_are_drawn() -> None:
    assert torch.equal(subject_noise(0, "a", 10, 3, 8)[:4], subject_noise(0, "a", 4, 3, 8))
    assert not torch.equal(subject_noise(0, "a", 1, 3, 8), subject_noise(0, "b", 1, 3, 8))
    assert not torch.equal(subject_noise(0, "a", 1, 3, 8), subject_noise(1, "a", 1, 3, 8))
    many = subject_noise(0, "a", 400, 4, 50)
    assert float(many.mean()) == pytest.approx(0, abs=0.01)
    assert float(many.std()) == pytest.approx(1, abs=0.01)


def test_embedding_sd_is_over_the_subjects_tokens() -> None:
    lm = random_model("gpt2")
    ids = [i for s in ("Anna Berg", "Peru") for i in lm.tokenizer(f" {s}", add_special_tokens=False)["input_ids"]]
    expected = lm.arch.embedding.weight[ids].double().std().item()
    assert embedding_sd(lm, ["Anna Berg", "Peru", "Peru"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("layer", "window", "n_layers", "expected"),
    [(5, 5, 30, range(3, 8)), (0, 5, 30, range(0, 3)), (29, 5, 30, range(27, 30)), (5, 1, 30, range(5, 6)),
     (5, 4, 30, range(3, 7)), (5, 10, 30, range(0, 10)), (1, 99, 4, range(0, 4))],
)  # fmt: skip
def test_windows(layer: int, window: int, n_layers: int, expected: range) -> None:
    assert window_range(layer, window, n_layers) == expected


@given(st.integers(0, 60), st.integers(1, 80), st.integers(1, 61))
def test_windows_hold_their_layer_and_are_cut_at_the_borders_only(layer: int, window: int, n_layers: int) -> None:
    layer = min(layer, n_layers - 1)
    found = window_range(layer, window, n_layers)
    assert layer in found
    assert 0 <= found.start < found.stop <= n_layers
    low, high = layer - window // 2, layer - window // 2 + window  # where there are blocks without end
    assert found == range(max(0, low), min(n_layers, high))


@given(st.floats(0, 1), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_any_fractions_stay_between_0_and_1(clean: float, corrupt: float, restored: list[float]) -> None:
    fraction = Trace(clean, corrupt, np.array([restored])).fraction
    assert ((fraction >= 0) & (fraction <= 1)).all()
    assert (fraction[0][np.array(restored) <= corrupt] == 0).all()


def test_fractions_stay_between_0_and_1_and_take_the_best_restored_as_whole() -> None:
    trace = Trace(0.6, 0.2, np.array([[0.2, 0.1], [0.4, 1.0]]))
    assert trace.effect == pytest.approx(np.array([[0.0, -0.1], [0.2, 0.8]]))
    assert trace.fraction == pytest.approx(np.array([[0.0, 0.0], [0.25, 1.0]]))
    below = Trace(0.6, 0.2, np.array([[0.4]]))
    assert below.fraction == pytest.approx(np.array([[0.5]]))
    assert (Trace(0.1, 0.2, np.array([[0.15, 0.2]])).fraction == 0).all()


@pytest.mark.parametrize(
    ("subject", "tokens", "expected"),
    [
        ((1, 2), 3, ["before_subject", "last_subject", "last_token"]),
        ((0, 2), 4, ["first_subject", "last_subject", "first_subsequent", "last_token"]),
        ((0, 4), 7, ["first_subject", "middle_subject", "middle_subject", "last_subject",
                     "first_subsequent", "further", "last_token"]),
        ((1, 3), 3, ["before_subject", "first_subject", "last_subject"]),
    ],
)  # fmt: skip
def test_token_roles(subject: tuple[int, int], tokens: int, expected: list[str]) -> None:
    assert token_roles(Prompt(tuple(range(tokens + 1)), tokens, subject, "")) == expected


def test_the_table_has_a_row_a_cell() -> None:
    fact = traced(random_model("gpt2"))
    trace = fact.fast("mlp", 2)
    frame = fact.frame("a", "mlp", 2, trace)
    assert len(frame) == trace.restored.size
    cell = frame[(frame.token_index == 3) & (frame.layer == 2)].iloc[0]
    assert cell.p_restored == trace.restored[3, 2]
    assert cell.effect == pytest.approx(cell.p_restored - cell.p_corrupt)
    assert "".join(frame.drop_duplicates("token_index").token) == fact.prompt.text
