"""What edited models write: in one batch with no weight touched as one by one with the edit in the weights."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.edit.protocol import Edit
from pipeline.lm.generate import continuations
from pipeline.lm.model import LanguageModel
from pipeline.measure.edited import applied, by_row
from pipeline.measure.writing import ABOUT, prompts_about, written, written_as_is
from tests.facts.made import fact
from tests.lm.families import EDITED, FAST_EDITED, random_model
from tests.measure.test_probabilities import several_blocks

FACT = fact(subject="Anna Berg", paraphrases=("The town of Anna Berg is", "Anna Berg is in", "One finds Anna Berg in"))
PROMPTS = prompts_about(FACT, 4)
TOKENS = 9


def one_by_one(lm: LanguageModel, edits: Sequence[Edit]) -> list[list[str]]:
    """The reference: each edit in the weights, and each text by itself."""
    return [written(replace(lm, fast=False), FACT, [edit], PROMPTS, TOKENS, 0)[0] for edit in edits]


@pytest.mark.parametrize("family", EDITED)
def test_no_weight_touched_equals_the_edit_in_the_weights(family: str) -> None:
    # In float64, Gemma 2's softmax, which transformers takes in float32, makes padding NaN.
    lm = random_model(family, torch.float32 if family == "gemma2" else torch.float64)
    edits = several_blocks(lm)
    together = written(lm, FACT, edits, PROMPTS, TOKENS, 0)
    assert together == one_by_one(lm, edits)
    unedited = together[-1]  # the last edit changes nothing
    assert sum(text != unedited for text in together[:-1]) == len(edits) - 1
    assert written(lm, FACT, edits[:2], PROMPTS, TOKENS, 0) == together[:2]
    assert not any(projection._forward_hooks for projection in lm.arch.down_projs)


@pytest.mark.parametrize("family", FAST_EDITED[:3])
def test_many_subjects_on_weights_that_hold_an_edit_write_what_each_does_alone(family: str) -> None:
    lm = random_model(family, torch.float64)
    facts = [FACT, fact(fact_id="other", subject="The Old Town Hall")]
    texts = []
    for edit in several_blocks(lm):
        with applied(lm, edit):
            together = written_as_is(lm, facts, TOKENS, 0)
        alone = [prompts_about(f, 1)[0] + written(lm, f, [edit], prompts_about(f, 1), TOKENS, 0)[0][0] for f in facts]
        assert together == alone
        texts.append(together)
    assert texts[0] != texts[-1]  # the last edit changes nothing
    assert written_as_is(lm, [], TOKENS, 0) == []


@pytest.mark.parametrize("family", FAST_EDITED)
def test_each_row_is_under_the_edit_that_is_told(family: str) -> None:
    bound = 1e-4 if family == "gemma2" else 1e-9  # transformers computes Gemma 2's softmax in float32
    lm = random_model(family)
    edits = several_blocks(lm)
    ids = torch.tensor([[40, 41, 42, 43], [50, 51, 52, 53]])
    alone = []
    for edit in edits:
        with applied(lm, edit), torch.no_grad():
            alone.append(lm.model(ids).logits)
    order = [3, 0, 3, 6, 1]
    with by_row(lm, edits) as tell, torch.no_grad():
        for of in (order, order[1:], [2, 2]):
            tell(of)
            rows = lm.model(ids[[row % 2 for row in range(len(of))]]).logits
            wanted = torch.stack([alone[e][row % 2] for row, e in enumerate(of)])
            assert torch.allclose(rows, wanted, rtol=bound, atol=bound)


def test_texts_go_on_past_a_token_that_ends_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_model("llama")
    drawn: list[list[int]] = []

    def seen(*of: Any, **how: Any) -> list[list[int]]:
        drawn.extend(continuations(*of, **how))
        return drawn

    monkeypatch.setattr("pipeline.measure.writing.continuations", seen)
    first = continuations(lm, [[40, 41]], 1)[0][0]
    lm.model.generation_config.eos_token_id = list(range(300))  # whatever is drawn
    assert len(continuations(lm, [[40, 41]], TOKENS)[0]) == 1
    assert continuations(lm, [[40, 41]], TOKENS, ends=False)[0][0] == first
    written(lm, FACT, several_blocks(lm), PROMPTS, TOKENS, 0)
    assert {len(text) for text in drawn} == {TOKENS}


def test_texts_before_and_after_are_drawn_by_the_same_numbers_and_no_two_prompts_by_the_same() -> None:
    lm = random_model("gpt2", scale=0.02)  # hardly more likely one token than another
    unedited = Edit(0, (), 0.0, 0.0, 0)
    one, other = written(lm, FACT, [unedited, unedited], PROMPTS, TOKENS, 0)
    assert one == other
    assert len(set(one)) == len(PROMPTS)
    assert written(lm, FACT, [unedited], PROMPTS, TOKENS, 1) != [one]
    assert written(lm, replace(FACT, fact_id="b"), [unedited], PROMPTS, TOKENS, 0) != [one]


def test_prompts_name_the_subject_and_are_not_what_was_edited() -> None:
    assert prompts_about(FACT, 99) == (*(text.replace("{}", "Anna Berg") for text in ABOUT), *FACT.paraphrases)
    assert prompts_about(FACT, 2) == tuple(text.replace("{}", "Anna Berg") for text in ABOUT[:2])
    assert not {FACT.text, "Anna Berg is a"} & set(prompts_about(FACT, 99))
    assert written(random_model("llama"), FACT, [Edit(0, (), 0.0, 0.0, 0)], (), TOKENS, 0) == [[]]
