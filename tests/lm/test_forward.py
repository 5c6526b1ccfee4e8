"""The resumed forward against the model's own: packed equals one at a time, a suffix equals the whole."""

import pytest
import torch

from pipeline.lm.forward import Suffix, climb, log_probabilities, record, resumes
from pipeline.lm.model import LanguageModel
from pipeline.lm.plain import Batch, full_logits, target_probabilities
from pipeline.lm.prompts import Prompt, pack
from tests.lm.families import EXPERTS, FAST, random_model

SEQUENCES = ([5, 6, 7, 8, 9, 10], [5, 6, 7, 20, 21], [30, 31, 32])
# transformers computes these families' softmax, or their router, in float32 whatever the model's type is.
TOLERANCE = dict.fromkeys(FAST, 1e-11) | dict.fromkeys(("gemma2", *EXPERTS), 5e-6)


@pytest.fixture(params=FAST)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return random_model(request.param)


def tolerance(lm: LanguageModel) -> float:
    return TOLERANCE[lm.arch.config.model_type]


def test_packed_prompts_equal_one_at_a_time(lm: LanguageModel) -> None:
    packed = pack(SEQUENCES)
    recording = record(lm, packed)
    for sequence, path in zip(SEQUENCES, packed.where, strict=True):
        alone = lm.model(input_ids=torch.tensor([sequence])).logits[0]
        assert alone.std() > 1e-3  # a model that says the same whatever it reads would prove nothing
        together = lm.arch.logits(recording.h[-1][0, list(path)])
        assert (alone - together).abs().max() < tolerance(lm)


def test_padded_batch_equals_one_at_a_time(lm: LanguageModel) -> None:
    prompts = [Prompt(tuple(sequence), len(sequence), None, "") for sequence in SEQUENCES]
    logits = full_logits(lm, Batch.of(prompts, lm.device))
    for row, sequence in enumerate(SEQUENCES):
        alone = lm.model(input_ids=torch.tensor([sequence])).logits[0]
        assert (alone - logits[row, : len(sequence)]).abs().max() < tolerance(lm)


@pytest.mark.parametrize("start", [0, 2, 4])
def test_a_suffix_run_again_gives_what_was_recorded(lm: LanguageModel, start: int) -> None:
    packed = pack(SEQUENCES)
    recording = record(lm, packed)
    live = [packed.where[0][3], packed.where[0][4], packed.where[0][5], packed.where[1][4]]
    suffix = Suffix.after(recording, live)
    later = min(start + 1, lm.n_layers)

    def join(at: int) -> tuple[torch.Tensor, None] | None:
        rows = suffix.live(recording.h[at]).expand(2, -1, -1)
        return (rows, None) if at in (start, later) else None

    hidden = climb(lm, suffix, start, join)
    assert hidden.shape[0] == 2 * len({start, later})
    assert (hidden - suffix.live(recording.h[-1])).abs().max() < tolerance(lm)


def test_noise_is_added_per_sample_and_token(lm: LanguageModel) -> None:
    sequence = SEQUENCES[0]
    noise = torch.randn(3, 2, lm.arch.embedding.weight.shape[1], dtype=torch.float64)
    recording = record(lm, pack([sequence], [[-1, 0, 1, -1, -1, -1]]), noise=noise)
    for b in range(3):
        spread = torch.zeros(1, len(sequence), noise.shape[-1], dtype=torch.float64)
        spread[0, 1:3] = noise[b]
        prompt = Prompt(tuple(sequence), len(sequence), None, "")
        alone = full_logits(lm, Batch.of([prompt], lm.device), spread)[0]
        assert (alone - lm.arch.logits(recording.h[-1][b])).abs().max() < tolerance(lm)
    clean = record(lm, pack([sequence]))
    assert (clean.h[-1][0] - recording.h[-1][0]).abs().max() > 1e-3


def test_target_probability_is_the_product_over_its_tokens(lm: LanguageModel) -> None:
    prompt = Prompt((5, 6, 7, 8, 9), 3, None, "")
    logits = lm.model(input_ids=torch.tensor([prompt.ids])).logits[0].softmax(-1)
    by_hand = float(logits[2, 8] * logits[3, 9])
    assert target_probabilities(lm, Batch.of([prompt], lm.device)).item() == pytest.approx(by_hand, rel=1e-5)
    hidden = record(lm, pack([prompt.ids[:-1]])).h[-1][:, list(prompt.reads)]
    logs = log_probabilities(lm, hidden, torch.tensor([prompt.target_ids]))
    assert logs.sum().exp().item() == pytest.approx(by_hand, rel=1e-5)


def test_a_model_that_can_be_run_from_the_middle_says_so(lm: LanguageModel) -> None:
    assert resumes(lm)


def test_a_norm_that_nothing_names_is_noticed() -> None:
    lm = random_model("olmo2")
    lm.arch.mlp_norms[:] = [None] * lm.n_layers
    assert not resumes(lm)


def test_hooks_are_gone_afterwards() -> None:
    lm = random_model("llama")
    record(lm, pack(SEQUENCES), attn=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
