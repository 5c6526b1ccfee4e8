"""Loading: what is in a folder is what runs, and what cannot be meant is refused in a sentence that names it."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from pipeline.edit.methods import load as load_params
from pipeline.errors import UserError
from pipeline.lm.families import FAMILIES
from pipeline.lm.folders import check_safetensors, fingerprint
from pipeline.lm.forward import first
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel, wrap
from pipeline.settings.sections import ModelParams
from tests.conftest import ROOT
from tests.lm.families import CONFIGS, random_model, small_tokenizer

IDS = torch.tensor([[40, 41, 42, 43, 44]])
NAMES = {
    "blocks": "model.layers",
    "attn": "self_attn",
    "mlp": "mlp",
    "down_proj": "mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}


def settings(name: Path | str, **changes: Any) -> ModelParams:
    """A `model` section of params.yaml."""
    smoke = load_params(ROOT / "presets" / "smoke.yaml").model.model_dump()
    return ModelParams.model_validate({**smoke, "name": str(name), "device": "cpu", **changes})


def opened(name: Path | str, **changes: Any) -> LanguageModel:
    """The model of such a section."""
    section = settings(name, **changes).model_dump()
    return load(section.pop("name"), **section)


def logits(lm: LanguageModel) -> Tensor:
    return lm.model(IDS).logits


def save(lm: LanguageModel, folder: Path, **options: Any) -> Path:
    lm.model.save_pretrained(folder, **options)
    small_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return random_model("llama", torch.float32)


@pytest.fixture(scope="module")
def saved(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(lm, tmp_path_factory.mktemp("saved") / "llama")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "llama"))


def refused(name: Path | str, *told: str, **changes: Any) -> None:
    """Loading ends in one sentence, soon, which holds each of `told`."""
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        opened(name, **changes)
    assert time.monotonic() - start < 5
    sentence = str(error.value)
    assert "\n" not in sentence
    assert len(sentence) < 700
    assert [text for text in told if text not in sentence] == [], sentence


def complaint(call: Callable[[], object]) -> str:
    """What a UserError of the call says; empty if there was none."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("family", CONFIGS)
def test_a_folder_gives_the_model_that_was_saved_there(family: str, tmp_path: Path) -> None:
    original = random_model(family, torch.float32)
    loaded = opened(save(original, tmp_path / family))
    assert torch.equal(logits(loaded), logits(original))
    assert loaded.describe()["family"] == original.arch.config.model_type
    assert loaded.n_layers == 4
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_number_format_is_the_one_asked_for(saved: Path) -> None:
    assert opened(saved, dtype="bfloat16").dtype == torch.bfloat16
    assert opened(saved, dtype="float64").dtype == torch.float64


def test_a_sharded_folder_gives_the_same_model(lm: LanguageModel, tmp_path: Path) -> None:
    folder = save(lm, tmp_path / "shards", max_shard_size="40KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 3
    assert torch.equal(logits(opened(folder)), logits(lm))
    before = opened(folder).fingerprint
    shards[2].unlink()
    refused(folder, str(folder), shards[2].name)
    shutil.copy(shards[1], shards[2])
    assert fingerprint(folder) != before


def test_the_fingerprint_is_of_the_content(saved: Path, folder: Path) -> None:
    whole = fingerprint(saved)
    assert fingerprint(folder) == whole  # elsewhere, later: the same
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert fingerprint(folder) != whole


def test_the_fingerprint_of_a_large_file_is_not_kept_when_the_file_changes(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with weights.open("wb") as file:
        file.truncate(50_000_001)
    whole = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == whole
    assert (tmp_path / ".model.safetensors.sha256").is_file()
    with weights.open("r+b") as file:
        file.write(b"x")
    assert fingerprint(tmp_path) != whole


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", str(tmp_path / "nothing"), "does not exist", "config.json")


def drop(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def configure(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        before = path.read_bytes()
        path.write_bytes(change(before))
        assert path.read_bytes() != before

    return damage


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (drop("config.json"), ["{folder}", "has no config.json"]),
        (write("config.json", "{"), ["config.json", "is not valid JSON"]),
        (write("config.json", "[]"), ["config.json", "holds a list"]),
        (write("config.json", "{}"), ["{folder}", "could not be loaded"]),
        (configure(model_type="bert"), ["{folder}", "'bert'", "causal"]),
        (configure(model_type="t5", is_encoder_decoder=True), ["{folder}", "'t5'", "causal"]),
        (configure(model_type="distilbert"), ["{folder}", "causal"]),
        (configure(intermediate_size=64), ["{folder}", "model.layers.0.mlp.down_proj.weight", "another shape"]),
        (configure(num_hidden_layers=5), ["{folder}", "model.layers.4.", "missing"]),
        (drop("tokenizer.json"), ["{folder}", "no tokenizer", "tokenizer.json"]),
        (write("tokenizer.json", '{"version": "1.0"}'), ["{folder}", "could not be loaded"]),
        (drop("model.safetensors"), ["{folder}", "no weights", "safetensors"]),
        (weights(lambda content: b""), ["model.safetensors", "truncated", "0 bytes"]),
        (weights(lambda content: content[:5]), ["model.safetensors", "truncated", "5 bytes"]),
        (weights(lambda content: content[:1000]), ["model.safetensors", "truncated", "1000 bytes"]),
        (weights(lambda content: content[:-4]), ["model.safetensors", "truncated", "expected"]),
        (weights(lambda content: content + b"\0"), ["model.safetensors", "damaged", "expected"]),
        (weights(lambda content: b"\xff" * 8 + content[8:]), ["model.safetensors", "header does not fit"]),
        (weights(lambda content: content[:8] + b"[" + content[9:]), ["model.safetensors", "header is not JSON"]),
        (
            weights(lambda content: content.replace(b"data_offsets", b"data_offsett", 1)),
            ["model.safetensors", "does not describe tensors"],
        ),
        # Transformers would put random numbers where the tensor is not found.
        (
            weights(lambda content: content.replace(b"layers.2.mlp.down_proj", b"layers.2.mlp.dowm_proj")),
            ["{folder}", "model.layers.2.mlp.down_proj.weight is missing"],
        ),
    ],
)
def test_a_folder_that_cannot_be_meant(folder: Path, damage: Callable[[Path], object], told: list[str]) -> None:
    damage(folder)
    refused(folder, *(text.format(folder=folder) for text in told))


def test_whichever_bit_of_a_header_flips_nothing_else_than_the_same_model_gets_through(
    lm: LanguageModel, folder: Path
) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    passed = 0
    loaded: list[LanguageModel] = []
    with path.open("r+b", buffering=0) as file:
        for place in range(0, end, 3):
            for bit in (1, 4, 64):
                file.seek(place)
                file.write(bytes([whole[place] ^ bit]))
                refusal = complaint(lambda: check_safetensors(path))
                passed += not refusal
                if refusal:
                    assert str(path) in refusal
                elif passed % 40 == 0:  # whole loads of some of what the quick check lets through
                    refusal = complaint(lambda: loaded.append(opened(folder)))
                    assert str(folder) in refusal if refusal else torch.equal(logits(loaded[-1]), logits(lm))
            file.seek(place)
            file.write(whole[place : place + 1])
    assert path.read_bytes() == whole
    assert passed > 400
    assert len(loaded) < passed // 40


class _Harm:
    """Unpickled with no precautions, this makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_refused_unless_allowed(lm: LanguageModel, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(lm.model.state_dict(), folder / "pytorch_model.bin")
    refused(folder, str(folder), "pytorch_model.bin", "model.allow_pickle")
    loaded = opened(folder, allow_pickle=True)
    assert torch.equal(logits(loaded), logits(lm))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_weights_run_no_code_even_where_allowed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "harm"
    content = {"lm_head.weight": _Harm(mark)}
    pickle.loads(pickle.dumps(content))
    assert mark.exists()  # so it would do harm
    mark.unlink()
    for dump in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        dump(content, folder / "pytorch_model.bin")
        refused(folder, str(folder), "pytorch_model.bin")
        refused(folder, str(folder), "Weights only load failed", allow_pickle=True)
        assert not mark.exists()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a family that models.py does not list."""
    config = transformers.AutoConfig.for_model(
        "helium", hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=300, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    assert config.model_type not in FAMILIES
    model = transformers.AutoModelForCausalLM.from_config(config)
    wrapped = wrap(model, small_tokenizer(), names=NAMES)
    return save(wrapped, tmp_path_factory.mktemp("foreign") / "helium")


def test_an_unknown_family_works_once_its_names_are_given(foreign: Path) -> None:
    refused(foreign, "'helium'", str(foreign), "model.names", *NAMES)
    lm = opened(foreign, names=NAMES)
    assert lm.n_layers == 3
    assert lm.arch.key_size(0) == 48
    # The path named as the last norm is the last norm: the blocks' output gives the model's own logits.
    seen: list[Tensor] = []
    with lm.arch.blocks[-1].register_forward_hook(lambda module, args, output: seen.append(first(output))):
        out = lm.model(IDS)
    torch.testing.assert_close(lm.arch.logits(seen[0]), out.logits)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"attn": "attention"}, ["HeliumDecoderLayer", "'attention'", "model.names"]),
        ({"final_norm": "model.final"}, ["'model.final'", "model.names"]),
        ({"blocks": "model.norm"}, ["model.names.blocks", "'model.norm'", "list"]),
        ({"down_proj": "mlp"}, ["model.names.down_proj", "'mlp'", "linear map"]),
        ({"down_proj": "input_layernorm"}, ["model.names.down_proj", "linear map"]),
    ],
)
def test_wrong_names_are_told(foreign: Path, wrong: dict[str, str], told: list[str]) -> None:
    refused(foreign, *told, names=NAMES | wrong)


def test_bos_is_refused_where_the_tokenizer_has_none(saved: Path, folder: Path) -> None:
    assert opened(saved, add_bos=True).add_bos
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text())
    assert told.pop("bos_token") == "<s>"
    path.write_text(json.dumps(told))
    refused(folder, "model.add_bos", str(folder), "no BOS token", add_bos=True)
    assert not opened(folder).add_bos


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(saved: Path) -> None:
    refused(saved, "model.device", "'cuda:1'", "cpu", device="cuda:1")


def test_foreign_code_is_told_loudly(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened(saved)
    assert capsys.readouterr().out == ""
    opened(saved, trust_remote_code=True)
    out = capsys.readouterr().out
    assert out.startswith("WARNING: model.trust_remote_code")
    assert str(saved) in out


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What HF_HUB_OFFLINE=1 sets; the library reads that variable once, when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("nobody/there-is-no-such-model", "'nobody/there-is-no-such-model'", "hub")
