"""MEMIT's many edits at once on a model that knows facts: all of them hold, and the weights come back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.edit import text
from pipeline.edit.memit import Memit
from pipeline.edit.moments import second_moments
from pipeline.edit.problems import PROBLEMS, edit_request
from pipeline.edit.protocol import Edit, Resources
from pipeline.facts.choose import trim
from pipeline.facts.fact import EMBEDDED, Fact
from pipeline.facts.readers import read_facts
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel
from pipeline.measure.edited import applied
from pipeline.measure.probabilities import Measurement, questions
from tests.conftest import TINY_FACTS, TINY_MODEL
from tests.edit.test_memit import SETTINGS

PREFIXES = ("", "Once upon a time. ")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load(str(TINY_MODEL), device="cpu")


@pytest.fixture(scope="module")
def resources(lm: LanguageModel) -> Resources:
    batches = text.text_batches(lm, "model", 4000, 16, 1.0, 0, lambda n: None)
    moments = second_moments(lm, batches, range(lm.n_layers))
    return Resources(moments.__getitem__, 1e-4)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    """One fact of each of the model's 24 subjects: at the subject's last token two of one subject have one key."""
    chosen = [fact for fact in trim(read_facts(EMBEDDED, TINY_FACTS, 0), 3, 3) if fact.relation == "trade"]
    assert len({fact.subject for fact in chosen}) == len(chosen) == 24
    return chosen


def efficacy(lm: LanguageModel, facts: list[Fact], edit: Edit | None) -> float:
    """Share of facts whose false object is likelier than the true one: ES of Meng et al."""
    with applied(lm, edit):
        asked = [Measurement(lm, questions(lm, f, f.target_false, f.target_true, 0), None) for f in facts]
        answers = np.stack([measurement.plain(None)[0] for measurement in asked])
    return float((answers[:, 0] > answers[:, 1]).mean())


def test_all_edits_made_at_once_hold(lm: LanguageModel, resources: Resources, facts: list[Fact]) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    requests = [edit_request(lm, PROBLEMS["error_injection"], f, f.target_false, PREFIXES, None) for f in facts]
    editor = Memit(SETTINGS, resources)
    edit = Edit(1, editor.edit_many(lm, requests, [0, 1, 2]), 0.0, 0.0, 0)
    assert efficacy(lm, facts, None) == 0.0
    assert efficacy(lm, facts, edit) > 0.9
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    # A moment that outweighs the new keys leaves the model as it was.
    heavy = Memit(SETTINGS.__class__(**{**vars(SETTINGS), "covariance_weight": 1e12}), resources)
    assert efficacy(lm, facts, Edit(1, heavy.edit_many(lm, requests, [0, 1, 2]), 0.0, 0.0, 0)) == 0.0
