"""The noised answer of tracing reversal: the first word that the model goes on with, or the first content word."""

import pytest

from pipeline.edit import problems
from pipeline.edit.problems import noised_answer, same_answer
from pipeline.lm.noise import NoiseTable
from pipeline.lm.prompts import tokenize
from tests.lm.families import random_model


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_function_words_are_passed_over_one_by_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_model(family)
    prompt = tokenize(lm.tokenizer, "The capital of France is", subject="France", target="Oslo", add_bos=False)
    noise = NoiseTable(0, "a", 0.3, 2, lm.embedding_width)
    first = noised_answer(lm, prompt, noise, 2)
    assert first
    assert noised_answer(lm, prompt, noise, 2, "first_word") == first
    passed: set[str] = set()
    monkeypatch.setattr(problems, "is_function_word", lambda word: word in passed)
    words = []
    for _ in range(3):
        word = noised_answer(lm, prompt, noise, 2, "first_content_word")
        assert word not in passed
        assert word == word.strip()
        words.append(word)
        if not word:
            break
        passed.add(word)
    assert words[0] == first
    assert len(words) >= 2
    assert noised_answer(lm, prompt, noise, 2) == first  # which passes over nothing
    monkeypatch.setattr(problems, "is_function_word", lambda word: True)
    assert noised_answer(lm, prompt, noise, 2, "first_content_word") == ""


@pytest.mark.parametrize(
    ("o_noise", "target_true", "same"),
    [("United", "the United States", True), ("the", "the United States", True), ("States", "the United States", False)],
)
def test_a_content_word_that_begins_the_true_object_still_says_it(o_noise: str, target_true: str, same: bool) -> None:
    assert same_answer(o_noise, target_true) is same
