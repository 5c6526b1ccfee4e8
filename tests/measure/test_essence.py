"""The perplexity of what a model had to say of a subject: fast equals plain on every family, and it is what it says."""

import math

import numpy as np
import pytest
import torch

from pipeline.analysis.scores import essence as score
from pipeline.edit.protocol import Edit, LowRank, failed
from pipeline.errors import UserError
from pipeline.lm.generate import continuations
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import tokenize
from pipeline.measure.edited import applied
from pipeline.measure.essence import Essence
from tests.facts.made import fact
from tests.lm.families import CONFIGS, EDITED, FAST_EDITED, random_model
from tests.measure.test_probabilities import several_blocks

FACT = fact(subject="Anna Berg")
LENGTH = 24


def sampled(lm: LanguageModel, seed: int = 0) -> Essence:
    return Essence.sampled(lm, FACT, seed, length=LENGTH)


def own_perplexity(lm: LanguageModel, essence: Essence) -> float:
    """What transformers' own losses give, text by text, the prompt's tokens left out."""
    found = []
    for ids, length in zip(essence.sequences, essence.lengths, strict=True):
        tokens = torch.tensor([ids])
        labels = tokens.clone()
        labels[:, :-length] = -100
        found.append(math.exp(float(lm.model(input_ids=tokens, labels=labels).loss)))
    return sum(found) / len(found)


@pytest.mark.parametrize("family", CONFIGS)
def test_without_an_edit_it_is_the_models_own_perplexity(family: str) -> None:
    lm = random_model(family)
    essence = sampled(lm)
    assert essence.before() == pytest.approx(own_perplexity(lm, essence), rel=1e-5)  # transformers' is in float32
    assert essence.plain(None) == pytest.approx(essence.before(), rel=1e-5 if family == "gemma2" else 1e-12)


@pytest.mark.parametrize("family", EDITED)
def test_no_weight_touched_equals_a_weight_changed(family: str) -> None:
    bound = 1e-5 if family == "gemma2" else 1e-10  # transformers computes Gemma 2's softmax in float32
    lm = random_model(family)
    essence, edits = sampled(lm), several_blocks(lm)
    plain = np.array([essence.plain(edit) for edit in edits])
    before = essence.before()
    assert plain[-1] == pytest.approx(before, rel=bound)  # the last edit changes nothing
    assert (np.abs(plain[:-1] - before) > 1e-6 * before).all()
    with applied(lm, edits[0]):
        assert plain[0] == pytest.approx(own_perplexity(lm, essence), rel=1e-5)
    if family in FAST_EDITED:
        after = essence.after(edits, before)
        assert after == pytest.approx(plain, rel=bound)
        assert after[-1] == before
        assert essence.after(edits, before, lambda suffix: 2, 3) == pytest.approx(after, rel=1e-12)


def test_texts_are_drawn_once_from_the_unedited_model_with_a_seed_of_their_own() -> None:
    lm = random_model("llama", scale=0.4)
    essence = sampled(lm)
    prompt = tokenize(lm.tokenizer, "Anna Berg is a", add_bos=lm.add_bos).ids
    assert len(essence.sequences) == 5
    assert all(tuple(ids[: len(prompt)]) == prompt for ids in essence.sequences)
    assert all(len(prompt) < len(ids) <= LENGTH for ids in essence.sequences)
    assert len({tuple(ids) for ids in essence.sequences}) == 5
    assert sampled(lm).sequences == essence.sequences
    assert sampled(lm, 1).sequences != essence.sequences
    assert Essence.sampled(lm, fact("b", subject="Anna Berg"), 0, length=LENGTH).sequences != essence.sequences
    more = Essence.sampled(lm, FACT, 0, length=LENGTH, texts=7)
    assert more.sequences[:5] == essence.sequences
    for ids in essence.sequences:
        logits = lm.model(torch.tensor([ids[:-1]])).logits[0, len(prompt) - 1 :].float()
        assert (logits.topk(5).indices == torch.tensor(ids[len(prompt) :])[:, None]).any(1).all()
    greedy = Essence.sampled(lm, FACT, 0, length=LENGTH, texts=1, top_k=1)
    assert greedy.sequences[0][len(prompt) :] == continuations(lm, [prompt], LENGTH - len(prompt))[0]


def test_perplexities_by_hand() -> None:
    lm = random_model("gpt2")
    essence = Essence(lm, [40, 41], [[50, 51], [52], [53, 54, 55]])
    log = math.log
    losses = torch.tensor([[log(2), log(8), log(3), log(5), log(5), log(5)]], dtype=torch.float64)
    assert float(essence.reduce(losses)) == pytest.approx((4 + 3 + 5) / 3)  # geometric means: 4, 3 and 5
    assert score(4.0, float(essence.reduce(losses + log(1.5)))) == pytest.approx(1 - (6 - 4) / 5)
    lm.model.transformer.ln_f.weight.data.zero_()
    lm.model.transformer.ln_f.bias.data.zero_()  # all 300 tokens are equally likely
    essence = sampled(lm)
    assert essence.before() == pytest.approx(300)
    assert essence.plain(None) == pytest.approx(300)


def test_edits_that_failed_and_those_that_give_no_number() -> None:
    lm = random_model("llama")
    left = torch.full((lm.arch.width, 1), float("nan"), dtype=torch.float64)
    broken = Edit(1, (LowRank(1, left, torch.ones(lm.arch.key_size(1), 1, dtype=torch.float64)),), 0.0, 0.0, 0)
    essence = sampled(lm)
    after = essence.after([broken, failed(1, "failed: a")], essence.before())
    assert after[0] == essence.plain(broken) == float("inf")
    assert np.isnan([after[1], essence.plain(failed(1, "failed: a"))]).all()
    assert score(essence.before(), after)[0] == 0.0


def test_a_prompt_that_leaves_nothing_to_sample() -> None:
    lm = random_model("llama")
    with pytest.raises(UserError, match=r"fact a: the prompt .* has \d+ tokens, .* 100 at most"):
        Essence.sampled(lm, fact(subject="qz" * 60), 0)
