"""Probabilities after edits: adding what an edit does equals changing the weight, on every family."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.edit.protocol import Dense, Edit, LowRank, failed
from pipeline.edit.rome import Rome
from pipeline.facts.fact import Fact
from pipeline.facts.readers import read_facts
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.measure.collapse import Harm
from pipeline.measure.edited import applied
from pipeline.measure.probabilities import Measurement, edit_frame, questions
from tests.conftest import TINY_FACTS, TINY_MODEL
from tests.edit.test_rome import SETTINGS, request_for, resources_for
from tests.lm.families import FAST_EDITED, random_model

FACT = Fact(
    fact_id="a",
    relation="capital",
    subject="France",
    prompt="The capital of {} is",
    target_true="Paris",
    target_false="Oslo",
    paraphrases=("In France one lives in", "France is governed from"),
    neighborhood=("The capital of Peru is", "The capital of Rome is", "The capital of Norway is"),
)


@pytest.fixture(params=FAST_EDITED)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return random_model(request.param)


@pytest.mark.parametrize("noised", [False, True])
def test_no_weight_touched_equals_a_weight_changed(lm: LanguageModel, noised: bool) -> None:
    bound = 1e-3 if lm.arch.config.model_type == "gemma2" else 1e-6  # relative, of probabilities near 1e-9
    noise = NoiseTable(0, "a", 0.3, 2, lm.arch.embedding.weight.shape[1]) if noised else None
    asked = questions(lm, FACT, "Oslo", "Paris", 2 if noised else 0)
    measurement = Measurement(lm, asked, noise)
    edits = Rome(SETTINGS, resources_for(lm)).edit(lm, request_for(lm), range(lm.n_layers))
    before, after = measurement.before(), measurement.after(edits)
    assert before == pytest.approx(measurement.plain(None), rel=bound)
    for e, edit in enumerate(edits):
        assert after[e] == pytest.approx(measurement.plain(edit), rel=bound)
        # Nothing leads from the last block's subject token to the answer: that edit is no change.
        assert (np.abs(after[e] - before) > 1e-4 * before).any() == (edit.layer < lm.n_layers - 1)
    one_by_one = measurement.after(edits, rows=lambda suffix: 1)
    assert one_by_one == pytest.approx(after, rel=bound)
    assert before == pytest.approx(measurement.plain(None), rel=bound)  # nothing is left behind


def several_blocks(lm: LanguageModel) -> list[Edit]:
    """Edits of up to four updates, low-rank and dense, at neighboring and distant blocks, and one that changes none."""
    generator = torch.Generator().manual_seed(1)
    width, size = lm.arch.width, lm.arch.key_size(0)

    def low(layer: int, rank: int = 2) -> LowRank:
        left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (width, size))
        return LowRank(layer, 0.3 * left, right / size**0.5)

    def dense(layer: int) -> Dense:
        change = torch.randn(width, size, generator=generator, dtype=torch.float64)
        return Dense(layer, 0.3 * change / size**0.5)

    sets = [
        (low(1, 3),), (dense(0), low(2)), (low(2), low(0), dense(1)), (dense(2), low(2), low(3)),
        tuple(low(layer, 1) for layer in range(lm.n_layers)), (low(3),), (),
    ]  # fmt: skip
    return [Edit(e % lm.n_layers, updates, 0.0, 0.0, 0) for e, updates in enumerate(sets)]


@pytest.mark.parametrize("noised", [False, True])
def test_edits_of_several_blocks_score_as_in_the_weights(lm: LanguageModel, noised: bool) -> None:
    bound = 1e-3 if lm.arch.config.model_type == "gemma2" else 1e-6
    noise = NoiseTable(0, "a", 0.3, 2, lm.arch.embedding.weight.shape[1]) if noised else None
    measurement = Measurement(lm, questions(lm, FACT, "Oslo", "Paris", 2 if noised else 0), noise)
    edits = several_blocks(lm)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    after = measurement.after(edits)
    for e, edit in enumerate(edits):
        assert after[e] == pytest.approx(measurement.plain(edit), rel=bound)
        assert np.array_equal(after[e], measurement.before()) == (not edit.updates)
    assert measurement.after(edits, rows=lambda suffix: 2) == pytest.approx(after, rel=bound)
    assert measurement.after(edits[::-1]) == pytest.approx(after[::-1], rel=bound)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_only_the_subjects_prompts_are_noised() -> None:
    lm = random_model("llama")
    noise = NoiseTable(0, "a", 1.0, 4, 32)
    noised = Measurement(lm, questions(lm, FACT, "Oslo", "Paris", 4), noise).before()
    clean = Measurement(lm, questions(lm, FACT, "Oslo", "Paris", 0), None).before()
    assert (np.abs(noised[:3] - clean[:3]) > 1e-3 * clean[:3]).all()
    assert noised[3:] == pytest.approx(clean[3:], rel=1e-6)


def test_a_failed_edit_has_no_probabilities_and_keeps_its_rows() -> None:
    lm = random_model("llama")
    measurement = Measurement(lm, questions(lm, FACT, "Oslo", "Paris", 0), None)
    good = Rome(SETTINGS, resources_for(lm)).edit(lm, request_for(lm), [2])
    edits = [failed(0, "failed: a reason"), *good]
    after = measurement.after(edits)
    assert np.isnan(after[0]).all()
    assert np.isfinite(after[1]).all()
    harm = Harm(np.array([np.nan, 0.25]), 3.0, np.array([np.nan, 3.5]))
    frame = edit_frame(FACT, "error_injection", "rome", 1, "Oslo", "Paris", measurement.before(), edits, after, harm)
    last = frame.iloc[-1]
    assert (last.denominator, last.update_norm) == (good[0].denominator, 0.25)
    assert (last.text_loss_pre, last.text_loss_post) == (3.0, 3.5)
    assert frame.loc[:5, ["denominator", "update_norm", "text_loss_post"]].isna().all(axis=None)
    assert list(frame.groupby("layer").size()) == [6, 6]
    assert list(frame.prompt_kind[:6]) == ["rewrite"] + ["paraphrase"] * 2 + ["neighborhood"] * 3
    assert frame.status[0] == "failed: a reason"
    assert frame.p_pre.notna().all()


def test_tokens_shared_by_prompts_are_run_once() -> None:
    lm = random_model("llama", torch.float32)
    measurement = Measurement(lm, questions(lm, FACT, "Oslo", "Paris", 0), None)
    lengths = sum(len(p.ids) - 1 for q in measurement.asked for p in (q.target, q.baseline))
    assert len(measurement.packed) < 0.6 * lengths


def probability(lm: LanguageModel, prompt: str, target: str) -> float:
    """p of the target's tokens after the prompt, from transformers' own forward of the whole text."""
    start = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = lm.tokenizer(f"{prompt} {target}", add_special_tokens=False)["input_ids"]
    logs = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logs[i - 1, ids[i]] for i in range(len(start), len(ids))).exp())


def test_the_reverse_prompt_asks_for_the_subject_and_changes_no_other_probability() -> None:
    lm = random_model("llama")
    both = replace(FACT, reverse="{} is the capital of")
    asked = questions(lm, both, "Oslo", "Paris", 2)
    assert [q.kind for q in asked] == [q.kind for q in questions(lm, FACT, "Oslo", "Paris", 2)] + ["reverse"]
    assert asked[-1].draws == ()  # its subject is the answer: there is nothing to noise
    noise = NoiseTable(0, "a", 0.3, 2, lm.arch.embedding.weight.shape[1])
    with_it = Measurement(lm, asked, noise)
    without = Measurement(lm, questions(lm, FACT, "Oslo", "Paris", 2), noise)
    edits = several_blocks(lm)
    assert np.abs(with_it.before()[:-1] - without.before()).max() < 1e-12
    assert np.abs(with_it.after(edits)[:, :-1] - without.after(edits)).max() < 1e-12
    by_hand = [probability(lm, f"{known} is the capital of", "France") for known in ("Oslo", "Paris")]
    assert with_it.before()[-1] == pytest.approx(by_hand, rel=1e-6)
    with applied(lm, edits[0]):
        by_hand = [probability(lm, f"{known} is the capital of", "France") for known in ("Oslo", "Paris")]
    assert with_it.after(edits)[0, -1] == pytest.approx(by_hand, rel=1e-6)
    assert with_it.plain(edits[0])[-1] == pytest.approx(by_hand, rel=1e-6)
    frame = edit_frame(
        both, "error_injection", "rome", 1, "Oslo", "Paris", with_it.before(), edits, with_it.after(edits),
        Harm.unknown(len(edits)),
    )  # fmt: skip
    back = frame[frame["prompt_kind"] == "reverse"]
    assert len(back) == len(edits)
    assert set(back["prompt_index"]) == {0}
    assert back["p_post"].to_numpy() == pytest.approx(with_it.after(edits)[:, -1, 0])


def test_in_float32_other_probabilities_move_by_rounding_alone() -> None:
    lm = load(str(TINY_MODEL), device="cpu")
    facts = read_facts("embedded", TINY_FACTS, 0)[:3]
    for fact in facts:
        before, after = (
            Measurement(lm, questions(lm, each, fact.target_false, fact.target_true, 0), None)
            for each in (fact, replace(fact, reverse="One who lives near {} is called"))
        )
        assert np.abs(after.before()[:-1] - before.before()).max() < 1e-6
        edits = several_blocks(lm)
        assert np.abs(after.after(edits)[:, :-1] - before.after(edits)).max() < 1e-6
