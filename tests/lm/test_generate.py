"""Text of many prompts at once is the text of each alone, and ends where `model.generate` ends it."""

import pytest
import torch

from pipeline.lm import generate
from pipeline.lm.generate import continuations, end_tokens, sample, sample_batch
from pipeline.lm.model import LanguageModel
from tests.lm.families import random_model

FAMILIES = ("gpt2", "llama", "gemma2", "gptj", "qwen3", "falcon", "mpt", "bloom", "cohere2")
PROMPTS = [
    [40 + 3 * i, 50 + i, 60 + 7 * i % 90, *range(70, 70 + i % 5), *range(90, 90 + 2 * (i % 3))] for i in range(24)
]
TOKENS = 14


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return random_model(request.param, torch.float32, scale=0.4)


def alone(lm: LanguageModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = lm.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
    )
    return [int(i) for i in out[0, len(prompt) :]]


def end_at(lm: LanguageModel, texts: list[list[int]]) -> list[int]:
    """Make two tokens of the texts' middle end a text from now on."""
    ends = [texts[0][4], texts[3][7]]
    lm.model.generation_config.eos_token_id = ends
    return ends


def test_greedy_texts_are_those_that_generate_gives_one_at_a_time(lm: LanguageModel) -> None:
    lm.model.generation_config.eos_token_id = None
    whole = continuations(lm, PROMPTS, TOKENS)
    assert whole == [alone(lm, prompt) for prompt in PROMPTS]
    assert len({tuple(text) for text in whole}) > 12  # a model that says the same to all would prove nothing
    ends = end_at(lm, whole)
    cut = continuations(lm, PROMPTS, TOKENS)
    assert cut == [alone(lm, prompt) for prompt in PROMPTS]
    assert 2 <= sum(text[-1] in ends for text in cut) < len(cut)
    assert {len(text) for text in cut} > {TOKENS}


def test_a_batch_that_shrinks_goes_on_as_before(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lm.model.generation_config.eos_token_id = None
    end_at(lm, continuations(lm, PROMPTS, TOKENS))
    found = []
    for share in (0.0, 1.0):
        monkeypatch.setattr(generate, "SHRINK", share)
        found.append(continuations(lm, PROMPTS, TOKENS))
    assert found[0] == found[1]


def test_a_folders_generation_settings_do_not_change_what_greedy_is() -> None:
    lm = random_model("llama", torch.float32, scale=0.4)
    before = continuations(lm, PROMPTS, TOKENS)
    lm.model.generation_config.repetition_penalty = 1.8
    lm.model.generation_config.no_repeat_ngram_size = 2
    assert [alone(lm, prompt) for prompt in PROMPTS] != before
    assert continuations(lm, PROMPTS, TOKENS) == before


def test_a_sampled_text_does_not_depend_on_its_batch(lm: LanguageModel) -> None:
    seeds = list(range(100, 100 + len(PROMPTS)))
    together = continuations(lm, PROMPTS, TOKENS, temperature=1.0, seeds=seeds)
    for i in (0, 5, 17):
        assert continuations(lm, [PROMPTS[i]], TOKENS, temperature=1.0, seeds=[seeds[i]]) == [together[i]]
    other = continuations(lm, PROMPTS, TOKENS, temperature=1.0, seeds=[seed + 1000 for seed in seeds])
    assert sum(a == b for a, b in zip(other, together, strict=True)) < 4


def test_draws_follow_the_models_probabilities() -> None:
    lm = random_model("gpt2", torch.float32)
    n = 3000
    found = torch.tensor(continuations(lm, [[40, 41]] * n, 1, temperature=0.7, seeds=range(n)))[:, 0]
    wanted = (lm.model(torch.tensor([[40, 41]])).logits[0, -1] / 0.7).softmax(-1)
    shares = torch.bincount(found, minlength=len(wanted)) / n
    assert (shares - wanted).abs().max() < 5 * float((wanted.max() / n) ** 0.5)
    assert float((shares * wanted.log()).sum()) == pytest.approx(float((wanted * wanted.log()).sum()), abs=0.1)


def test_draws_among_the_likeliest_alone() -> None:
    lm = random_model("gpt2", torch.float32)
    lm.model.generation_config.eos_token_id = None
    seeds = list(range(len(PROMPTS)))
    alone = continuations(lm, PROMPTS, TOKENS, temperature=1.0, seeds=seeds, top_k=1)
    assert alone == continuations(lm, PROMPTS, TOKENS)
    all_tokens = [continuations(lm, PROMPTS, 4, temperature=1.0, seeds=seeds, top_k=k) for k in (0, 300, 400)]
    assert all_tokens[0] == all_tokens[1] == all_tokens[2]
    n = 2000
    found = torch.tensor(continuations(lm, [[40, 41]] * n, 1, temperature=0.7, seeds=range(n), top_k=3))[:, 0]
    logits, tokens = lm.model(torch.tensor([[40, 41]])).logits[0, -1].topk(3)
    wanted = (logits / 0.7).softmax(-1)
    shares = torch.bincount(found, minlength=300)[tokens] / n
    assert float(shares.sum()) == pytest.approx(1, abs=1e-6)
    assert (shares - wanted).abs().max() < 5 * 0.5 / n**0.5


def test_what_a_batchs_rows_are_is_told_before_each_run(lm: LanguageModel) -> None:
    told: list[list[int]] = []
    ran: list[int] = []
    hook = lm.model.register_forward_pre_hook(
        lambda _module, _args, how: ran.append(len(how["input_ids"])), with_kwargs=True
    )
    try:
        texts = continuations(lm, PROMPTS, TOKENS, rows=lambda group: told.append(list(group)))
    finally:
        hook.remove()
    assert [len(group) for group in told] == ran
    # A row may be kept past its text's end, never let go before it.
    assert all(sum(i in group for group in told) >= len(text) for i, text in enumerate(texts))
    assert texts == continuations(lm, PROMPTS, TOKENS)


@pytest.mark.parametrize(("named", "ends"), [(None, []), (7, [7]), ([7, 9], [7, 9])])
def test_the_tokens_that_end_a_text(named: int | list[int] | None, ends: list[int]) -> None:
    lm = random_model("gpt2")
    lm.model.generation_config.eos_token_id = named
    assert end_tokens(lm) == ends


def test_a_batch_of_sampled_pieces_is_the_same_whatever_comes_beside_it() -> None:
    lm = random_model("llama", torch.float32)
    pieces = generate.BATCH + 5
    whole = sample(lm, pieces, 8, 1.0, 3)
    assert whole.shape == (pieces, 8)
    assert torch.equal(whole[generate.BATCH :], sample_batch(lm, generate.BATCH, 5, 8, 1.0, 3))
    assert not torch.equal(whole[:5], whole[generate.BATCH :])
