"""Model folders as they are published: shards, generation settings, chat templates, added tokens, tied weights saved
once. Each loads, and what is measured of facts is what the model's own forward over the bare prompt says.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from pipeline.facts.fact import Fact
from pipeline.facts.known import continuation, fact_prompt, measure
from pipeline.lm.load import load
from tests.lm.families import CONFIGS, random_model, small_tokenizer

FACTS = tuple(
    Fact(
        fact_id=f"f{i}",
        relation="lives",
        subject=subject,
        prompt="{} lives in the city of",
        target_true=target,
        target_false="Rome",
        paraphrases=(),
        neighborhood=(),
    )
    for i, (subject, target) in enumerate(
        (("Anna Berg", "Oslo"), ("Peru", "Zanzibar"), ("Zanzibar", "Paris"), ("Clara Zanzibar", "Oslo"))
    )
)
WITHIN = 8  # tokens


def model(family: str = "llama", **options: Any) -> Any:
    """A small model with random weights."""
    if not options:
        return random_model(family, torch.float32).model
    config = transformers.AutoConfig.for_model(
        family, **CONFIGS[family] | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1} | options
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.2)
    return made


def tokenizer() -> Any:
    """A copy that a test may change."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(small_tokenizer().backend_tokenizer).from_str(
            small_tokenizer().backend_tokenizer.to_str()
        ),
        bos_token="<s>",
        eos_token="</s>",
    )


def sharded(folder: Path) -> tuple[Any, Any]:
    lm, words = model(), tokenizer()
    lm.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert (folder / "model.safetensors.index.json").is_file()
    return lm, words


def with_generation_settings(folder: Path) -> tuple[Any, Any]:
    """Those of a chat model: its penalty would change the greedy text, its length would cut it."""
    lm, words = model(), tokenizer()
    lm.save_pretrained(folder)
    path = folder / "generation_config.json"
    settings: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.9,
    }
    settings |= {"no_repeat_ngram_size": 1, "max_length": 9, "eos_token_id": [1], "suppress_tokens": [70, 71, 72]}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return lm, words


def with_a_chat_template(folder: Path) -> tuple[Any, Any]:
    lm, words = model(), tokenizer()
    lm.save_pretrained(folder)
    words.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    return lm, words


def with_added_tokens(folder: Path, **options: bool) -> tuple[Any, Any]:
    """One token for a name, which stands in a subject and as a target, and embeddings padded beyond the tokenizer."""
    lm, words = model(), tokenizer()
    words.add_tokens([AddedToken("Zanzibar", **options), AddedToken("<pad>", special=True)])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        lm.resize_token_embeddings(len(words) + 6, mean_resizing=False)
    lm.save_pretrained(folder)
    assert len(words("Zanzibar")["input_ids"]) == 1
    return lm, words


def with_added_tokens_that_take_the_space(folder: Path) -> tuple[Any, Any]:
    return with_added_tokens(folder, lstrip=True)


def tied_once(folder: Path, family: str, saved: str, gone: str) -> tuple[Any, Any]:
    """Input and output embeddings are one, and stand in the file under one of their two names."""
    lm = model(family, tie_word_embeddings=True)
    assert lm.get_input_embeddings().weight is lm.get_output_embeddings().weight
    lm.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in (saved, gone):
        tensors.pop(name, None)
    save_file(tensors | {saved: lm.get_input_embeddings().weight.detach().clone()}, path, metadata={"format": "pt"})
    with safe_open(path, framework="pt") as file:
        assert saved in file.keys()  # noqa: SIM118
        assert gone not in file.keys()  # noqa: SIM118
    return lm, tokenizer()


def tied_llama(folder: Path) -> tuple[Any, Any]:
    return tied_once(folder, "llama", "model.embed_tokens.weight", "lm_head.weight")


def tied_gpt2(folder: Path) -> tuple[Any, Any]:
    return tied_once(folder, "gpt2", "transformer.wte.weight", "lm_head.weight")


def tied_under_the_head_s_name(folder: Path) -> tuple[Any, Any]:
    return tied_once(folder, "llama", "lm_head.weight", "model.embed_tokens.weight")


@torch.no_grad()
def expected(lm: Any, words: Any, fact: Fact) -> tuple[float, bool, bool]:
    """p(target), whether it is the greedy answer and whether it stands in the greedy text: whole forwards, one fact."""
    prompt = words(fact.text, add_special_tokens=False)["input_ids"]
    whole = words(f"{fact.text} {fact.target_true}", add_special_tokens=False)["input_ids"]
    assert whole[: len(prompt)] == prompt
    logs = lm(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    places = range(len(prompt), len(whole))
    p = sum(logs[i - 1, whole[i]] for i in places).exp()
    greedy = all(int(logs[i - 1].argmax()) == whole[i] for i in places)
    text = list(prompt)
    for _ in range(WITHIN):
        text.append(int(lm(torch.tensor([text])).logits[0, -1].argmax()))
        if text[-1] == words.eos_token_id:
            break
    return float(p), greedy, greedy or fact.target_true in words.decode(text[len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "make",
    [
        sharded,
        with_generation_settings,
        with_a_chat_template,
        with_added_tokens,
        with_added_tokens_that_take_the_space,
        tied_llama,
        tied_gpt2,
        tied_under_the_head_s_name,
    ],
)
def test_a_published_folder_gives_the_model_s_own_probabilities(
    make: Callable[[Path], tuple[Any, Any]], tmp_path: Path
) -> None:
    original, words = make(tmp_path)
    words.save_pretrained(tmp_path)
    lm = load(str(tmp_path), device="cpu")
    found = measure(lm, FACTS, WITHIN)
    for fact, known in zip(FACTS, found, strict=True):
        p, greedy, within = expected(original.eval(), words, fact)
        assert known.p_true == pytest.approx(p, rel=1e-3, abs=0), fact.fact_id
        assert (known.greedy_correct, known.within) == (greedy, within)
    assert len({f"{known.p_true:.4g}" for known in found}) == len(FACTS)


def test_greedy_text_is_the_model_s_own_whatever_generation_settings_say(tmp_path: Path) -> None:
    """A target that the model does say, and would not with the penalties of the folder's settings."""
    original, words = with_generation_settings(tmp_path)
    words.save_pretrained(tmp_path)
    text = list(words(FACTS[0].text)["input_ids"])
    start = len(text)
    for _ in range(WITHIN):
        text.append(int(original(torch.tensor([text])).logits[0, -1].argmax()))
    settings = transformers.GenerationConfig.from_pretrained(tmp_path)
    settings.update(do_sample=False, max_length=None, max_new_tokens=WITHIN)
    other = original.generate(torch.tensor([text[:start]]), generation_config=settings)[0].tolist()
    assert other != text  # so the settings matter
    lm = load(str(tmp_path), device="cpu")
    assert continuation(lm, fact_prompt(lm, FACTS[0]), WITHIN) == words.decode(text[start:], skip_special_tokens=True)
