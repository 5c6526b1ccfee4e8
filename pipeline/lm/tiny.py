"""A small GPT-2 that learns an invented world: a model for tests and the smoke preset that truly knows its facts.

Edits and traces mean something only on a model that knows. This one has 6 blocks of width 96 and is trained in
half a minute on one CPU core, with a byte-level BPE vocabulary of its own, until it continues every prompt and
paraphrase of the table correctly, whatever stands before it. Three things in its training make it behave as
large models do under causal tracing and ROME (Meng et al. 2022):

* At the last token of a subject, a linear probe after block 2 must tell all the subject's objects. So the lower
  MLPs enrich the subject there, and later tokens only have to fetch; left alone, so small a model moves the
  subject to the last token and looks the object up there, and no early edit can reach it.
* Where all subject tokens carry noise, the sentence ends in any object of its relation, so that a corrupted run
  knows nothing (a network of width 96 would otherwise still tell two dozen names apart at three standard deviations).
* Where all but the last subject token carry noise, it ends in the true one, so that restoring that token helps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import tokenizers
import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pipeline.disk import sync_folder, writing
from pipeline.errors import UserError
from pipeline.progress import track
from pipeline.seeds import derive

BLOCKS, WIDTH, HEADS, POSITIONS = 6, 96, 4, 128
VOCABULARY = 580  # 256 bytes, one special token and so many merges that subjects are of two and three tokens
END = "<|endoftext|>"
PROBE_AFTER = 3  # blocks

STEPS, ROWS, ROW_LENGTH = 290, 24, 48
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 3e-3, 0.1, 20
OTHER_WEIGHT = 0.2  # of a token that is not part of an object, in the loss
NOISE = 3.0  # standard deviations of the subject tokens' embeddings, as in tracing
NOISED_SUBJECTS, NOISED_BEGINNINGS = 0.15, 0.15  # shares of the sentences
CHARACTERS = ("quiet", "cheerful", "patient", "restless")

_UNSEEN = -100  # cross_entropy's mark for what is not to be predicted


class Statement(Protocol):
    """A fact as far as the training asks: `text` and `paraphrases` are prompts that `target_true` continues."""

    @property
    def fact_id(self) -> str: ...
    @property
    def relation(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def paraphrases(self) -> tuple[str, ...]: ...
    @property
    def target_true(self) -> str: ...


@dataclass(frozen=True)
class _Text:
    """Token ids, and the weight of each in the loss when it is the one to predict."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class _Sentence:
    """A sentence, where its subject's tokens stand, and the number of the subject's object in each relation.

    others: the same sentence with each object of its relation in turn; none if it states no fact.
    """

    text: _Text
    subject: range
    objects: list[int]
    others: list[_Text]


@dataclass(frozen=True)
class _Batch:
    """ids, weights and noise (in standard deviations) have shape (ROWS, ROW_LENGTH).

    last: places of the last subject tokens in the flattened batch (n,), and objects their subjects' objects
    (n, relations), for the probe.
    """

    ids: Tensor
    weights: Tensor
    noise: Tensor
    last: Tensor
    objects: Tensor


def recipe(facts_folder: Path, seed: int) -> str:
    """A hash (16 hex digits) of all that the trained model depends on but the machine."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for name in ("relations.tsv", "facts.tsv"):
        path = facts_folder / name
        if path.is_file():  # a missing one is told where it is read
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    versions = (torch.__version__, transformers.__version__, tokenizers.__version__, str(seed))
    digest.update("/".join(versions).encode())
    return digest.hexdigest()[:16]


def train(folder: Path, facts: Iterable[Statement], seed: int) -> None:
    """Train on `facts` and save model (safetensors) and tokenizer as `folder`.

    `folder` appears whole or not at all; one that another process has put there meanwhile is left. The result
    is the same for the same `recipe` on the same machine: one thread, and the caller's random state,
    thread count and gradient mode are as before afterwards.
    """
    facts = sorted(facts, key=lambda fact: fact.fact_id)
    threads = torch.get_num_threads()
    try:
        # Products this small gain little from a second thread, and lose all of it when the core is not free.
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(derive(seed, "tiny", "model"))
            tokenizer = _train_tokenizer(facts)
            model = _train_model(facts, tokenizer, random.Random(derive(seed, "tiny", "text")))
    finally:
        torch.set_num_threads(threads)
    _save(folder, model, tokenizer)


def _stated(fact: Statement) -> list[str]:
    """The fact's prompts, each of which the true object continues."""
    return [fact.text, *fact.paraphrases]


def _described(facts: Sequence[Statement]) -> dict[str, str]:
    """A sentence "{subject} is a ..." for each subject; ROME's divergence term and essence ask for these."""
    subjects = dict.fromkeys(fact.subject for fact in facts)
    return {
        subject: f"{subject} is a {CHARACTERS[i % len(CHARACTERS)]} person from the island."
        for i, subject in enumerate(subjects)
    }


def _train_tokenizer(facts: Sequence[Statement]) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's: it puts no special token of its own, and spaces begin tokens."""
    corpus = [f"{prompt} {fact.target_true}." for fact in facts for prompt in _stated(fact)]
    corpus += _described(facts).values()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for line in corpus for text in (line, f" {line}")], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        model_max_length=POSITIONS,
    )


class _Rows:
    """Deals training rows: sentences end to end, after all that may stand before a prompt.

    A row begins with the end-of-text token, with the first sentence, with random tokens, or with a piece of a
    sentence; end-of-text and random tokens also come between sentences. Every sentence is used equally often.
    """

    def __init__(self, facts: Sequence[Statement], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._end: int = tokenizer.eos_token_id
        self._dot: int = self._encode(".")[0]
        self._of_relation: dict[str, list[str]] = {}
        for fact in facts:
            objects = self._of_relation.setdefault(fact.relation, [])
            if fact.target_true not in objects:
                objects.append(fact.target_true)
        self.relations = len(self._of_relation)
        self.most_objects = max(len(objects) for objects in self._of_relation.values())
        numbers: dict[str, list[int]] = {fact.subject: [_UNSEEN] * self.relations for fact in facts}
        for fact in facts:
            relation = list(self._of_relation).index(fact.relation)
            numbers[fact.subject][relation] = self._of_relation[fact.relation].index(fact.target_true)
        # Each sentence as it opens a text and as it follows another, with a space before it.
        self._sentences = [
            [self._state(space, prompt, fact, numbers[fact.subject]) for space in ("", " ")]
            for fact in facts
            for prompt in _stated(fact)
        ]
        self._sentences += [
            [self._describe(space + line, subject, numbers[subject]) for space in ("", " ")]
            for subject, line in _described(facts).items()
        ]
        self._pile: list[list[_Sentence]] = []

    def batch(self) -> _Batch:
        rows = [self._row() for _ in range(ROWS)]
        last = [(i * ROW_LENGTH + place, objects) for i, row in enumerate(rows) for place, objects in row[3]]
        return _Batch(
            ids=torch.tensor([row[0] for row in rows]),
            weights=torch.tensor([row[1] for row in rows]),
            noise=torch.tensor([row[2] for row in rows]),
            last=torch.tensor([place for place, _ in last]),
            objects=torch.tensor([objects for _, objects in last]),
        )

    def _row(self) -> tuple[list[int], list[float], list[float], list[tuple[int, list[int]]]]:
        """Token ids, weights, noise, and (place, objects) of every last subject token, cut to ROW_LENGTH."""
        ids = self._beginning()
        weights = [0.0] * len(ids)
        noise = [0.0] * len(ids)
        last: list[tuple[int, list[int]]] = []
        while len(ids) < ROW_LENGTH:
            opens = not ids or ids[-1] == self._end
            sentence = self._next()[0 if opens else 1]
            text, sentence_noise = sentence.text, [0.0] * (len(sentence.text.ids) + ROW_LENGTH)
            chance = self._rng.random()
            noised = range(0)
            if sentence.others and chance < NOISED_SUBJECTS:
                text, noised = self._rng.choice(sentence.others), sentence.subject
            else:
                last.append((len(ids) + sentence.subject[-1], sentence.objects))
                if chance < NOISED_SUBJECTS + NOISED_BEGINNINGS:
                    noised = sentence.subject[:-1]
            for place in noised:
                sentence_noise[place] = NOISE
            ids = ids + text.ids
            weights = weights + text.weights
            noise = noise + sentence_noise[: len(text.ids)]
            chance = self._rng.random()
            if chance < 0.15:
                ids, weights, noise = [*ids, self._end], [*weights, OTHER_WEIGHT], [*noise, 0.0]
            elif chance < 0.22:
                junk = self._junk()
                ids, weights, noise = ids + junk, weights + [0.0] * len(junk), noise + [0.0] * len(junk)
        inside = [(place, objects) for place, objects in last if place < ROW_LENGTH]
        return ids[:ROW_LENGTH], weights[:ROW_LENGTH], noise[:ROW_LENGTH], inside

    def _beginning(self) -> list[int]:
        kind = self._rng.randrange(4)
        if kind == 0:
            return [self._end]
        if kind == 1:
            return []
        if kind == 2:
            return self._junk()
        ids = self._rng.choice(self._sentences)[1].text.ids
        cut = self._rng.randint(1, len(ids) - 1)
        return ids[-cut:] if self._rng.random() < 0.5 else [*ids[:cut], self._dot]

    def _junk(self) -> list[int]:
        size = len(self._tokenizer)
        return [
            *(self._rng.randrange(self._end + 1, size) for _ in range(self._rng.randint(1, 10))),
            self._dot,
        ]

    def _next(self) -> list[_Sentence]:
        if not self._pile:
            self._pile = self._sentences.copy()
            self._rng.shuffle(self._pile)
        return self._pile.pop()

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text).input_ids

    def _span(self, text: str, subject: str) -> range:
        """Places of the tokens that hold a character of the subject."""
        begin = text.index(subject)
        end = begin + len(subject)
        offsets = self._tokenizer(text, return_offsets_mapping=True).offset_mapping
        places = [i for i, (left, right) in enumerate(offsets) if left < end and right > begin]
        return range(places[0], places[-1] + 1)

    def _state(self, space: str, prompt: str, fact: Statement, objects: list[int]) -> _Sentence:
        start = space + prompt
        known = self._encode(start)

        def ending(target: str) -> _Text:
            ids = self._encode(f"{start} {target}.")
            length = len(ids) - len(known) - 1  # of the object; the full stop follows
            return _Text(ids, [OTHER_WEIGHT] * len(known) + [1.0] * length + [OTHER_WEIGHT])

        others = [ending(target) for target in self._of_relation[fact.relation]]
        return _Sentence(ending(fact.target_true), self._span(start, fact.subject), objects, others)

    def _describe(self, line: str, subject: str, objects: list[int]) -> _Sentence:
        ids = self._encode(line)
        return _Sentence(_Text(ids, [OTHER_WEIGHT] * len(ids)), self._span(line, subject), objects, [])


def _train_model(facts: Sequence[Statement], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> GPT2LMHeadModel:
    rows = _Rows(facts, tokenizer, rng)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=POSITIONS,
            n_embd=WIDTH,
            n_layer=BLOCKS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    probe = nn.Linear(WIDTH, rows.relations * rows.most_objects)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": [*vectors, *probe.parameters()], "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, max(0.02, 1 - step / STEPS))
    )
    subject_ids = torch.tensor(
        sorted({i for fact in facts for text in (fact.subject, f" {fact.subject}") for i in tokenizer(text).input_ids})
    )
    model.train()
    with track(STEPS, "training the tiny model", "steps") as progress:
        for _ in range(STEPS):
            loss = _loss(model, probe, rows, subject_ids)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.advance()
    return model.eval()


def _loss(model: GPT2LMHeadModel, probe: nn.Linear, rows: _Rows, subject_ids: Tensor) -> Tensor:
    """Weighted mean NLL of the next tokens plus the probe's mean NLL of the objects, on one batch."""
    batch = rows.batch()
    embedding = model.transformer.wte
    h = embedding(batch.ids)  # (ROWS, ROW_LENGTH, WIDTH)
    sd = embedding.weight.detach()[subject_ids].std()
    out = model(inputs_embeds=h + sd * batch.noise[..., None] * torch.randn_like(h), output_hidden_states=True)
    nll = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    enriched = out.hidden_states[PROBE_AFTER].flatten(0, 1)[batch.last]  # (n, WIDTH)
    told = probe(F.layer_norm(enriched, (WIDTH,))).view(-1, rows.relations, rows.most_objects)
    return (nll * weights).sum() / weights.sum() + F.cross_entropy(
        told.flatten(0, 1), batch.objects.flatten(), ignore_index=_UNSEEN
    )


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing its own progress bar while it writes three megabytes."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _save(folder: Path, model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with writing(folder):
            temporary.mkdir(parents=True)
            with _no_bars():
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
            for path in temporary.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            try:
                temporary.rename(folder)
            except OSError:
                if not (folder / "config.json").is_file():  # else another process was first
                    raise
            sync_folder(folder.parent)
    except SafetensorError as error:  # also what the disk objects to, told in the library's own way
        raise UserError(
            f"{folder} could not be written ({error}); {folder.parent} needs a few free megabytes"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
