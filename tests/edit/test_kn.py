"""Knowledge neurons: an oracle from scratch, the fast path against the plain one, and what holds by definition."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from ruamel.yaml import YAML

from pipeline.edit import methods
from pipeline.edit.kn import EXCHANGES, Kn, KnSettings, embedding
from pipeline.edit.problems import PROBLEMS, edit_request
from pipeline.edit.protocol import Edit, EditRequest, LowRank, Resources
from pipeline.errors import UserError
from pipeline.facts.fact import Fact
from pipeline.lm.forward import proven
from pipeline.lm.model import LanguageModel, wrap
from pipeline.measure.edited import applied
from pipeline.measure.probabilities import Measurement, questions
from tests.conftest import ROOT
from tests.lm.families import FAST_EDITED, random_model, small_tokenizer

SETTINGS = KnSettings(steps=20, rule="gauss", threshold=0.2, refine=None, factor=2.0, window=1)
FACT = Fact(
    fact_id="a",
    relation="capital",
    subject="France",
    prompt="The capital of {} is",
    target_true="Paris",
    target_false="Oslo",
    paraphrases=("France has the capital",),
)
PREFIXES = ("", "One two three. ", "Anna works. ")


def no_moment(layer: int) -> torch.Tensor:
    raise AssertionError(f"KN asks for the second moment of block {layer}")


def kn(settings: KnSettings = SETTINGS, path: str = "fast") -> Kn:
    return Kn(settings, Resources(no_moment, path=path))


def request_for(lm: LanguageModel, problem: str = "error_injection") -> EditRequest:
    target, baseline = ("Oslo", "Paris") if problem == "error_injection" else ("Paris", "Oslo")
    return edit_request(lm, PROBLEMS[problem], FACT, target, PREFIXES, None, baseline)


def neurons(edit: Edit) -> set[tuple[int, int]]:
    """(block, entry) of each column that the edit changes."""
    return {(u.layer, int(i)) for u in edit.updates for i in u.matrix().any(0).nonzero()[:, 0]}


def down_weight(lm: LanguageModel, block: int) -> torch.Tensor:
    """W (d, d_ff) as the papers write it, a copy."""
    weight = lm.arch.down_projs[block].weight.detach()
    return (weight.T if lm.arch.config.model_type == "gpt2" else weight).clone()


def oracle_attribution(lm: LanguageModel, text: str, target: str, block: int, steps: int) -> torch.Tensor:
    """Dai et al.'s Riemann sum with nothing of the project's but the module's place."""
    prompt_ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = lm.tokenizer(f"{text} {target}", add_special_tokens=False)["input_ids"]
    last, module = len(prompt_ids) - 1, lm.arch.down_projs[block]
    scale = torch.ones((), dtype=torch.float64)
    kept: list[torch.Tensor] = []

    def hook(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        rows = list(args[0].reshape(len(ids), -1).unbind(0))
        rows[last] = (scale * rows[last]).detach().requires_grad_()
        kept.append(rows[last])
        return (torch.stack(rows).reshape(args[0].shape),)

    handle = module.register_forward_pre_hook(hook)
    total = torch.zeros(lm.arch.key_size(block), dtype=torch.float64)
    for j in range(1, steps + 1):
        scale = torch.tensor(j / steps, dtype=torch.float64)
        probabilities = lm.model(torch.tensor([ids])).logits[0].softmax(-1)
        p = torch.ones((), dtype=torch.float64)
        for place in range(len(prompt_ids), len(ids)):
            p = p * probabilities[place - 1, ids[place]]
        p.backward()
        gradient = kept[-1].grad
        assert gradient is not None
        total += gradient
    handle.remove()
    return kept[-1].detach() * total / steps  # the last key is the whole one


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
@pytest.mark.parametrize("problem", EXCHANGES)
def test_an_oracle_finds_the_same_neurons_and_writes_the_same_weights(family: str, problem: str) -> None:
    lm = random_model(family)
    settings = replace(SETTINGS, rule="right", window="all", steps=10)
    scores = {block: oracle_attribution(lm, FACT.text, "Paris", block, 10) for block in range(lm.n_layers)}
    largest = max(float(score.max()) for score in scores.values())
    expected = {(b, i) for b, score in scores.items() for i, s in enumerate(score.tolist()) if s > 0.2 * largest}
    (edit,) = kn(settings).edit(lm, request_for(lm, problem), [1])
    assert neurons(edit) == expected
    assert len(expected) > 1

    rows = lm.model.get_input_embeddings().weight.detach()
    true, false = (
        rows[lm.tokenizer(f"{FACT.text} {name}", add_special_tokens=False)["input_ids"][at]]
        for name, at in ((name, len(lm.tokenizer(FACT.text)["input_ids"])) for name in ("Paris", "Oslo"))
    )
    added = {"error_injection": false - true, "fact_erasure": -true, "fact_amplification": true}[problem]
    before = {block: down_weight(lm, block) for block in range(lm.n_layers)}
    with applied(lm, edit):
        for block, weight in before.items():
            for i in range(weight.shape[1]):
                if (block, i) in expected:
                    weight[:, i] += 2 * added
            torch.testing.assert_close(down_weight(lm, block), weight, rtol=1e-12, atol=1e-12)
    change = torch.stack([u.matrix().double().norm() for u in edit.updates]).norm()
    assert edit.delta_norm == pytest.approx(float(change), rel=1e-6)


@pytest.mark.parametrize("family", FAST_EDITED)
def test_fast_equals_plain_in_float64(family: str) -> None:
    lm = random_model(family)
    for problem, settings in (
        ("error_injection", replace(SETTINGS, window="all", refine=0.4)),
        ("fact_erasure", replace(SETTINGS, window=2)),
        ("fact_amplification", replace(SETTINGS, rule="right", steps=10)),
    ):
        request, layers = request_for(lm, problem), [0, lm.n_layers - 1]
        for one, other in zip(
            kn(settings).edit(lm, request, layers, memory=10**6),
            kn(settings, "plain").edit(lm, request, layers),
            strict=True,
        ):
            assert (one.layer, one.status, one.acts) == (other.layer, "ok", True)
            assert neurons(one) == neurons(other) != set()
            assert one.delta_norm == other.delta_norm


def test_a_window_holds_the_blocks_around_a_layer_and_all_is_one_edit() -> None:
    lm = random_model("llama")
    request, layers = request_for(lm), range(lm.n_layers)
    for width in (1, 3):
        editor = kn(replace(SETTINGS, window=width))
        assert editor.window == width
        for edit in editor.edit(lm, request, layers):
            around = {b for b in layers if abs(b - edit.layer) <= width // 2}
            assert {block for block, _ in neurons(edit)} <= around
    whole = kn(replace(SETTINGS, window="all"))
    assert whole.window == 0
    edits = whole.edit(lm, request, [3, 0, 2])
    assert [edit.layer for edit in edits] == [3, 0, 2]
    assert neurons(edits[0]) == neurons(edits[1]) == neurons(edits[2])
    widest = kn(replace(SETTINGS, window=2 * lm.n_layers)).edit(lm, request, [1])[0]
    assert neurons(widest) == neurons(edits[0])


def test_a_higher_threshold_leaves_fewer_neurons_and_the_largest_always() -> None:
    lm = random_model("gpt2")
    found = [
        neurons(kn(replace(SETTINGS, threshold=threshold)).edit(lm, request_for(lm), [1])[0])
        for threshold in (0.0, 0.2, 0.5, 0.999)
    ]
    assert all(one > other for one, other in itertools.pairwise(found))
    assert len(found[-1]) == 1


def test_refined_neurons_are_shared_by_the_prefixed_prompts() -> None:
    lm = random_model("gpt2")
    request = request_for(lm)
    alone = []
    for prompt in request.baselines:  # each as if it were the bare prompt
        (edit,) = kn().edit(lm, replace(request, baselines=(prompt,)), [2])
        alone.append(neurons(edit))
    every = set.union(*alone)
    for share, least in ((0.1, 1), (1 / 3, 1), (0.4, 2), (2 / 3, 2), (0.7, 3), (1.0, 3)):
        (edit,) = kn(replace(SETTINGS, refine=share)).edit(lm, request, [2])
        assert neurons(edit) == {n for n in every if sum(n in found for found in alone) >= least}
    assert len(set.intersection(*alone)) < len(every)


def test_other_problems_are_dropped_with_a_reason() -> None:
    lm = random_model("gpt2")
    for problem in set(PROBLEMS) - set(EXCHANGES):
        edits = kn().edit(lm, replace(request_for(lm), problem=problem), range(lm.n_layers))
        assert [edit.layer for edit in edits] == [*range(lm.n_layers)]
        for edit in edits:
            assert edit.updates == ()
            only = "error_injection, fact_erasure or fact_amplification"
            assert edit.status == f"dropped: KN is not defined for {problem}, only for {only}"
    with pytest.raises(UserError, match="KN needs the baselines of a request for error_injection"):
        kn().edit(lm, replace(request_for(lm), baselines=()), [0])


def test_weights_are_put_back_bit_for_bit_and_scoring_needs_none_of_them() -> None:
    lm = random_model("llama", torch.float32)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    for problem in EXCHANGES:
        target, baseline = ("Oslo", "Paris") if problem == "error_injection" else ("Paris", "Oslo")
        measurement = Measurement(lm, questions(lm, FACT, target, baseline, 0), None)
        edits = kn(replace(SETTINGS, window="all")).edit(lm, request_for(lm, problem), [0])
        edits += kn().edit(lm, request_for(lm, problem), range(lm.n_layers))
        assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
        after = measurement.after(edits)
        for edit, scored in zip(edits, after, strict=True):
            plain = measurement.plain(edit)
            np.testing.assert_allclose(scored, plain, rtol=1e-3, atol=1e-7)
            assert not np.array_equal(plain, measurement.before())
        assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_no_neurons_change_nothing_and_no_number_is_a_failure() -> None:
    lm = random_model("gpt2")
    editor = kn()
    low = {1: -torch.rand(8, dtype=torch.float64)}
    edit = editor._finish(1, range(1, 2), [low], torch.ones(4, dtype=torch.float64))
    assert (edit.status, edit.updates, edit.delta_norm) == ("ok", (), 0.0)
    with torch.random.fork_rng():
        lm.arch.final_norm.weight.data[0], kept = float("nan"), lm.arch.final_norm.weight.data[0].clone()
    edits = editor.edit(lm, request_for(lm), [0, 1])
    lm.arch.final_norm.weight.data[0] = kept
    assert {edit.status for edit in edits} == {"failed: an attribution is not a finite number"}


def test_the_embedding_is_of_the_first_token_that_can_be_seen() -> None:
    lm = random_model("llama")
    prompt = request_for(lm).prompts[0]
    first = prompt.target_ids[0]
    assert torch.equal(embedding(lm, prompt), lm.arch.embedding.weight[first])
    (space,) = lm.tokenizer(" ", add_special_tokens=False)["input_ids"]
    spaced = replace(prompt, ids=(*prompt.ids[: prompt.target_start], space, *prompt.target_ids))
    assert torch.equal(embedding(lm, spaced), lm.arch.embedding.weight[first])


def test_embeddings_of_another_width_than_the_blocks_are_refused() -> None:
    config = transformers.OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=300, ffn_dim=64, word_embed_proj_dim=16,
        max_position_embeddings=128,
    )  # fmt: skip
    lm = proven(wrap(transformers.OPTForCausalLM(config), small_tokenizer(), name="narrow"))
    with pytest.raises(UserError, match="embeddings of narrow are 16 wide and its blocks 32"):
        kn(path="plain").edit(lm, request_for(lm, "fact_erasure"), [0])


def test_each_update_is_of_rank_one() -> None:
    lm = random_model("olmo2")
    (edit,) = kn(replace(SETTINGS, window="all")).edit(lm, request_for(lm), [0])
    assert len({update.layer for update in edit.updates}) == len(edit.updates)
    for update in edit.updates:
        assert isinstance(update, LowRank)
        assert set(update.right.unique().tolist()) == {0.0, 1.0}
        assert torch.linalg.matrix_rank(update.matrix()) == 1


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("steps", 0, "kn.steps is 0 but must be a whole number of steps, 1 to 1000"),
        ("rule", "left", "kn.rule is the text 'left' but must be gauss or right"),
        ("threshold", 1.0, "kn.threshold is 1.0 but must be a share of the largest attribution, 0 to below 1"),
        ("refine", 0, "kn.refine is 0 but must be null, or a share of the prompts above 0, at most 1"),
        ("factor", -2.0, "kn.factor is -2.0 but must be a number above 0"),
        ("window", 0, "kn.window is 0 but must be all, or a whole number of blocks, at least 1"),
        ("window", "some", "kn.window is the text 'some' but must be all, or a whole number of blocks, at least 1"),
    ],
)
def test_wrong_settings_are_told_in_a_sentence(key: str, value: object, told: str, tmp_path: Path) -> None:
    tree = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text("utf-8"))
    tree["edit"]["methods"], tree["kn"][key] = ["kn"], value
    with (tmp_path / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(tree, file)
    with pytest.raises(UserError, match=re.escape(told)):
        methods.load(tmp_path / "params.yaml")


def kn_of(preset: str) -> KnSettings:
    return KnSettings(**methods.load(ROOT / "presets" / f"{preset}.yaml").for_problem("kn", "error_injection"))


@pytest.mark.parametrize("preset", ["paper-gptj", "paper-gpt2-xl"])
def test_the_paper_presets_are_dai_et_als(preset: str) -> None:
    """Their numbers, their sum and all blocks; one prompt as Meng et al. have it."""
    assert kn_of(preset) == replace(SETTINGS, rule="right", window="all")


def test_the_default_is_dai_et_als_but_for_window_rule_and_the_threshold_that_was_tuned() -> None:
    tuned = json.loads((ROOT / "benchmarks" / "tuned.json").read_text("utf-8"))["chosen"]["kn"]["settings"]
    assert kn_of("default") == replace(SETTINGS, threshold=tuned["threshold"])
