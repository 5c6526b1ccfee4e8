"""Spans and targets: several tokenizers, positions, BOS settings, targets of several tokens; packing."""

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pipeline.errors import UserError
from pipeline.lm.prompts import pack, tokenize
from tests.lm.families import WORDS, small_tokenizer


def _sentencepiece_like() -> transformers.PreTrainedTokenizerFast:
    """Words begin with a visible space mark, as in Llama 2's tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def _words() -> transformers.PreTrainedTokenizerFast:
    """One token a word, lower case."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([WORDS], trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>"]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


TOKENIZERS = {"byte-level": small_tokenizer(), "sentencepiece": _sentencepiece_like(), "words": _words()}
CASES = {
    "first": ("Anna Berg lives in", "Anna Berg", None, "Oslo"),
    "middle": ("The capital of France is", "France", None, "Paris"),
    "last": ("The capital of France", "France", None, "Paris"),
    "one of two": ("Rome is not Rome but", "Rome", 12, "Paris"),
    "long target": ("The capital of Peru is", "Peru", None, "the city of Oslo, Spanish"),
    "punctuation": ("Born in Rome, Anna Berg works as", "Rome", None, "painter"),
}


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_subject_and_target_are_where_the_text_says(kind: str, case: str, add_bos: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    text, subject, at, target = CASES[case]
    prompt = tokenize(tokenizer, text, subject=subject, subject_at=at, target=target, add_bos=add_bos)
    offset = int(add_bos)
    assert (prompt.ids[0] == tokenizer.bos_token_id) == add_bos
    whole = tokenizer(f"{text} {target}", add_special_tokens=False, return_offsets_mapping=True)
    assert list(prompt.ids[offset:]) == whole["input_ids"]
    spans = whole["offset_mapping"]
    start = text.index(subject) if at is None else at
    assert prompt.subject is not None
    covered = spans[prompt.subject[0] - offset : prompt.subject[1] - offset]
    assert covered[0][0] <= start < covered[0][1]
    assert covered[-1][0] < start + len(subject) <= covered[-1][1]
    of_target = spans[prompt.target_start - offset :]
    assert all(end > len(text) for _, end in of_target)
    assert all(end <= len(text) for _, end in spans[: prompt.target_start - offset])
    assert "".join(f"{text} {target}"[a:b] for a, b in of_target).replace(" ", "") == target.replace(" ", "")
    assert prompt.reads == tuple(range(prompt.target_start - 1, len(prompt.ids) - 1))


plain = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(before=plain | st.just(""), subject=st.lists(plain, min_size=1, max_size=3), after=plain, target=plain,
       add_bos=st.booleans())  # fmt: skip
def test_spans_of_any_text_are_what_its_offsets_say(
    before: str, subject: list[str], after: str, target: str, add_bos: bool
) -> None:
    """Any script, marks and symbols: the subject's tokens are those that touch it, the target's come after the text."""
    tokenizer, name = TOKENIZERS["byte-level"], " ".join(subject)
    at = len(before) + 1 if before else 0
    text = f"{before} {name} {after}".lstrip(" ")
    prompt = tokenize(tokenizer, text, subject=name, subject_at=at, target=target, add_bos=add_bos)
    spans = tokenizer(f"{text} {target}", add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans = [(-1, -1)] * add_bos + spans
    assert prompt.subject is not None
    touching = [i for i, (low, high) in enumerate(spans) if low < at + len(name) and high > at]
    assert list(range(*prompt.subject)) == touching
    assert prompt.subject[1] <= prompt.target_start
    assert tokenizer.decode(list(prompt.ids[prompt.target_start :])) == f" {target}"
    assert tokenizer.decode(list(prompt.ids[int(add_bos) : prompt.target_start])) == text


def test_a_target_has_its_leading_space() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    prompt = tokenize(tokenizer, "The capital of France is", target="Paris", add_bos=False)
    assert tokenizer.decode(list(prompt.target_ids)) == " Paris"


@pytest.mark.parametrize(
    ("text", "subject", "target", "says"),
    [
        ("The capital of France is", "Norway", "Paris", "Norway"),
        ("The capital of France is", "France", "  ", "no tokens"),
        ("", None, "Paris", "no tokens"),
    ],
)
def test_what_cannot_be_tokenized_is_refused(text: str, subject: str | None, target: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        tokenize(TOKENIZERS["byte-level"], text, subject=subject, target=target, add_bos=False)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=6))
def test_packing_keeps_every_sequence_and_shares_every_beginning(sequences: list[list[int]]) -> None:
    packed = pack(sequences)
    beginnings = {tuple(sequence[: i + 1]) for sequence in sequences for i in range(len(sequence))}
    assert len(packed) == len(beginnings)
    for sequence, path in zip(sequences, packed.where, strict=True):
        assert packed.ids[list(path)].tolist() == sequence
        assert packed.positions[list(path)].tolist() == list(range(len(sequence)))
        for j, node in enumerate(path):
            assert set(packed.visible[node].nonzero()[:, 0].tolist()) == set(path[: j + 1])


def test_noise_keeps_beginnings_apart() -> None:
    packed = pack([[1, 2, 3], [1, 2, 3]], [[-1, 0, -1], [-1, 1, -1]])
    assert len(packed) == 5
    assert packed.where[0][0] == packed.where[1][0]
