"""The small trained model knows its world, and keeps its facts where a trace and an edit can find them.

It is trained where the tests run, so what is said of it must hold for every model that the training gives. The
comments say what nine models gave, lowest to highest: of the seeds 0, 1 and 2, trained with the instructions default,
avx2 and avx512. `make test-cpus` runs these tests with each of them.
"""

import random
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.compute import fetch
from pipeline.errors import UserError
from pipeline.facts.fact import EMBEDDED, Fact
from pipeline.facts.readers import read_facts
from pipeline.lm import cache, tiny
from pipeline.seeds import derive
from tests.conftest import ROOT, TINY_FACTS

pytestmark = pytest.mark.slow  # the model is trained before the first of them

Model = Any  # GPT2LMHeadModel and its fast tokenizer; their own types say nothing of the parts used here


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Model:
    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return read_facts(EMBEDDED, TINY_FACTS, 0)


def answer(model: Model, prompt: list[int], target: list[int]) -> tuple[float, bool]:
    """Probability of the target after the prompt, and whether it is the greedy answer."""
    logits = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
    p = logits.softmax(-1)[torch.arange(len(target)), torch.tensor(target)]
    return p.prod().item(), bool((logits.argmax(-1) == torch.tensor(target)).all())


def subject_places(tokenizer: Model, text: str, subject: str) -> list[int]:
    begin = text.index(subject)
    offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
    return [i for i, (left, right) in enumerate(offsets) if left < begin + len(subject) and right > begin]


def test_table_is_balanced(facts: list[Fact]) -> None:
    assert len(facts) == 96
    counts = Counter((fact.relation, fact.target_true) for fact in facts)
    assert set(counts.values()) == {6}
    assert len({relation for relation, _ in counts}) == 4
    assert all(len(fact.paraphrases) >= 3 and len(fact.neighborhood) >= 5 for fact in facts)
    # Of those who share a first name, each has another object: the first name must not tell.
    firsts = Counter((fact.relation, fact.subject.split()[0], fact.target_true) for fact in facts)
    assert set(firsts.values()) == {1}


def test_subjects_have_several_tokens_and_share_the_first(tokenizer: Model, facts: list[Fact]) -> None:
    spans = {fact.subject: tuple(tokenizer(" " + fact.subject).input_ids) for fact in facts}
    lengths = Counter(len(ids) for ids in spans.values())
    assert set(lengths) <= {2, 3, 4}
    assert len(lengths) > 1
    assert len(set(spans.values())) == len(spans)
    assert set(Counter(ids[0] for ids in spans.values()).values()) == {4}


def test_some_targets_have_several_tokens(tokenizer: Model, facts: list[Fact]) -> None:
    lengths = {fact.relation: len(tokenizer(" " + fact.target_true).input_ids) for fact in facts}
    assert lengths["home"] >= 2
    assert 1 in lengths.values()


def test_tokenizer_returns_any_text(tokenizer: Model) -> None:
    for text in ("Anna Vorlen plays the harp.", "naïve 名前 🙂 \t two  spaces\n"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer("<|endoftext|>").input_ids[0]


@pytest.mark.rounding
@pytest.mark.parametrize("start", ["bare", "bos", "random tokens", "other sentence"])
def test_knows_facts_in_every_wording_after_any_start(
    model: Model, tokenizer: Model, facts: list[Fact], start: str
) -> None:
    rng = random.Random(0)
    p, known = [], Counter[str]()
    for fact in facts:
        for prompt in (fact.text, *fact.paraphrases):
            ids = tokenizer(prompt).input_ids
            if start == "bos":
                ids = [tokenizer.bos_token_id, *ids]
            elif start == "random tokens":
                some = [rng.randrange(1, len(tokenizer)) for _ in range(rng.randint(3, 10))]
                ids = some + tokenizer(f". {prompt}").input_ids
            elif start == "other sentence":
                ids = tokenizer(f"{rng.choice(facts).text[:20]}. {prompt}").input_ids
            probability, greedy = answer(model, ids, tokenizer(f" {fact.target_true}").input_ids)
            p.append(probability)
            known[fact.fact_id] += greedy
    assert sum(count == 4 for count in known.values()) >= 80  # of 96; 93 to 96
    assert sum(p) / len(p) > 0.8  # 0.93 to 0.95


class Traced:
    """A fact's clean run and ten runs with noise of three standard deviations on its subject's embeddings."""

    def __init__(self, model: Model, tokenizer: Model, fact: Fact) -> None:
        self.model = model
        target = tokenizer(f" {fact.target_true}").input_ids
        prompt = tokenizer(fact.text).input_ids
        self.last = len(prompt) - 1
        self.subject = subject_places(tokenizer, fact.text, fact.subject)
        self.target = torch.tensor(target)
        embedding = model.transformer.wte
        h = embedding(torch.tensor([prompt + target]))
        sd = embedding.weight[torch.tensor(prompt)[self.subject]].std()
        noise = torch.randn(
            10, len(self.subject), h.shape[-1], generator=torch.Generator().manual_seed(derive(0, fact.fact_id))
        )
        self.inputs = h.repeat(11, 1, 1)  # the clean run and the ten others
        self.inputs[1:, self.subject] += 3 * sd * noise

    def p(self, modules: list[Any] | None = None, place: int = 0) -> tuple[float, float]:
        """Clean and mean noised probability; in noised runs, the modules' outputs at `place` are the clean ones."""

        def restore(_module: Any, _inputs: Any, output: Any) -> Any:
            h: Tensor = (output[0] if isinstance(output, tuple) else output).clone()
            h[1:, place] = h[0, place]
            return (h, *output[1:]) if isinstance(output, tuple) else h

        hooks = [module.register_forward_hook(restore) for module in modules or []]
        logits = self.model(inputs_embeds=self.inputs).logits[:, self.last : -1]
        for hook in hooks:
            hook.remove()
        p = logits.softmax(-1)[:, torch.arange(len(self.target)), self.target].prod(-1)
        return p[0].item(), p[1:].mean().item()


@pytest.fixture(scope="module")
def traced(model: Model, tokenizer: Model, facts: list[Fact]) -> list[Traced]:
    return [Traced(model, tokenizer, fact) for fact in facts[:32]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.rounding
def test_noise_on_the_subject_hides_the_answer(traced: list[Traced]) -> None:
    clean, noised = zip(*(run.p() for run in traced), strict=True)
    assert mean(list(noised)) < 0.6 * mean(list(clean))  # 0.37 to 0.44 of it


@pytest.mark.rounding
def test_trace_goes_from_early_subject_to_late_last_token(model: Model, traced: list[Traced]) -> None:
    def effect(modules: list[Any], last_subject: bool) -> float:
        return mean([run.p(modules, run.subject[-1] if last_subject else run.last)[1] - run.p()[1] for run in traced])

    blocks = list(model.transformer.h)
    lost = mean([clean - noised for clean, noised in (run.p() for run in traced)])
    assert effect(blocks[:1], last_subject=True) > 0.5 * lost  # 0.85 to 0.92 of it
    assert effect(blocks[-1:], last_subject=True) == pytest.approx(0, abs=1e-6)
    assert effect(blocks[:1], last_subject=False) < 0.1 * lost  # 0.0036 to 0.018 of it
    # All but what the second token of a target still reads from the noised subject.
    assert effect(blocks[-1:], last_subject=False) == pytest.approx(lost, abs=0.01)  # to 1e-4
    # The MLPs of the first blocks hold most of it at the subject, those of the last ones nothing.
    mlps, attentions = [block.mlp for block in blocks], [block.attn for block in blocks]
    assert effect(mlps[:3], last_subject=True) > 0.5 * lost  # 0.82 to 0.91 of it
    assert effect(mlps[4:], last_subject=True) < 0.15 * lost  # -1e-3 to 0.023 of it
    # The attention of later blocks fetches it to the end; in which of them differs from model to model.
    assert effect(attentions[2:], last_subject=False) > 0.5 * lost  # 0.94 to 0.98 of it
    assert effect(attentions[:2], last_subject=False) < 0.2 * lost  # 0.024 to 0.081 of it


@pytest.mark.rounding
def test_early_mlp_output_at_the_subject_can_carry_another_answer(
    model: Model, tokenizer: Model, facts: list[Fact]
) -> None:
    reached: dict[int, list[float]] = {0: [], 1: [], 5: []}
    for fact in facts[:8]:
        prompt = tokenizer(fact.text).input_ids
        target = tokenizer(f" {fact.target_false}").input_ids
        place = subject_places(tokenizer, fact.text, fact.subject)[-1]
        for layer, p in reached.items():
            delta = torch.zeros(tiny.WIDTH, requires_grad=True)
            scale: list[Tensor] = []

            def push(
                _module: Any, _inputs: Any, v: Tensor, place: int = place, delta: Tensor = delta, scale: Any = scale
            ) -> Tensor:
                scale.append(v[0, place].norm())
                v = v.clone()
                v[0, place] += delta
                return v

            hook = model.transformer.h[layer].mlp.register_forward_hook(push)
            optimizer = torch.optim.Adam([delta], lr=0.5)
            for _ in range(20):
                loss = model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                optimizer.zero_grad()
                (-loss[torch.arange(len(target)), torch.tensor(target)].mean()).backward()
                optimizer.step()
                with torch.no_grad():
                    delta *= min(1.0, (4 * scale[0] / delta.norm()).item())
            p.append(answer(model, prompt, target)[0])
            hook.remove()
    assert mean(reached[0]) > 0.8  # 0.97 to 0.98
    assert mean(reached[1]) > 0.8  # 0.93 to 0.98
    # 0.014 to 0.036: after the last block's attention has fetched, nothing at the subject helps.
    assert mean(reached[5]) < 0.2


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that ends before anything is learnt, for tests of the training's manners."""
    monkeypatch.setattr(tiny, "STEPS", 2)


def facts_of(folder: Path) -> list[Fact]:
    return read_facts("embedded", folder, 0)


@pytest.mark.rounding
@pytest.mark.usefixtures("short")
def test_training_is_deterministic_and_leaves_no_trace(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        tiny.train(tmp_path / "a", facts_of(TINY_FACTS), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    torch.randn(7)  # the caller's random numbers must not matter
    tiny.train(tmp_path / "b", facts_of(TINY_FACTS), 3)
    tiny.train(tmp_path / "c", facts_of(TINY_FACTS), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("short")
def test_model_that_is_there_already_is_left(tmp_path: Path) -> None:
    tiny.train(tmp_path / "m", facts_of(TINY_FACTS), 1)
    first = (tmp_path / "m" / "model.safetensors").read_bytes()
    tiny.train(tmp_path / "m", facts_of(TINY_FACTS), 2)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.usefixtures("short")
def test_folder_below_a_file_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"could not be written \(Not a directory\)"):
        tiny.train(tmp_path / "file" / "m", facts_of(TINY_FACTS), 1)


def test_full_disk_is_told_in_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the weights do not fit."""
    script = """
        import resource, signal, sys
        from pathlib import Path
        from pipeline.facts.readers import read_facts
        from pipeline.lm import tiny
        from pipeline.errors import UserError
        tiny.STEPS = 1
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            tiny.train(Path(sys.argv[1]), read_facts('embedded', Path(sys.argv[2]), 0), 0)
        except UserError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "m"), str(TINY_FACTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert f"{tmp_path / 'm'} could not be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_recipe_changes_with_seed_and_table(tmp_path: Path) -> None:
    shutil.copytree(TINY_FACTS, tmp_path / "facts")
    same = tiny.recipe(tmp_path / "facts", 0)
    assert same == tiny.recipe(TINY_FACTS, 0)
    assert tiny.recipe(TINY_FACTS, 1) != same
    table = tmp_path / "facts" / "facts.tsv"
    table.write_text(table.read_text().replace("White Cliff", "Black Cliff"))
    assert tiny.recipe(tmp_path / "facts", 0) != same


def test_missing_table_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "models"))
    with pytest.raises(UserError, match=r"relations\.tsv"):
        fetch.ensure("trained:tiny", 0, tmp_path)
