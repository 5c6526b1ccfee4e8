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
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.disk import sync_folder, writing
from pipeline.errors import UserError
from pipeline.lm import tiny_text
from pipeline.lm.tiny_text import UNSEEN, Rows, Statement, described, stated
from pipeline.progress import track
from pipeline.seeds import derive

if TYPE_CHECKING:  # only what trains imports it: it takes two seconds, and every stage imports this file
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

BLOCKS, WIDTH, HEADS, POSITIONS = 6, 96, 4, 128
VOCABULARY = 580  # 256 bytes, one special token and so many merges that subjects are of two and three tokens
END = "<|endoftext|>"
PROBE_AFTER = 3  # blocks

STEPS = 290
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 3e-3, 0.1, 20


def recipe(facts_folder: Path, seed: int) -> str:
    """A hash (16 hex digits) of all that the trained model depends on but the machine."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(tiny_text.__file__).read_bytes())
    for name in ("relations.tsv", "facts.tsv"):
        path = facts_folder / name
        if path.is_file():  # a missing one is told where it is read
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    versions = (torch.__version__, version("transformers"), tokenizers.__version__, str(seed))
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


def _train_tokenizer(facts: Sequence[Statement]) -> PreTrainedTokenizerFast:
    """Byte-level BPE as GPT-2's: it puts no special token of its own, and spaces begin tokens."""
    from transformers import PreTrainedTokenizerFast

    corpus = [f"{prompt} {fact.target_true}." for fact in facts for prompt in stated(fact)]
    corpus += described(facts).values()
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


def _train_model(facts: Sequence[Statement], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> GPT2LMHeadModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    rows = Rows(facts, tokenizer, rng)
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


def _loss(model: GPT2LMHeadModel, probe: nn.Linear, rows: Rows, subject_ids: Tensor) -> Tensor:
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
        told.flatten(0, 1), batch.objects.flatten(), ignore_index=UNSEEN
    )


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers from drawing its own progress bar while it writes three megabytes."""
    import transformers

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
