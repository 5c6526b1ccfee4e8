"""What an edit does to the model as a whole: fast equals plain on every family, and the numbers are what they say."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from pipeline.compute.probe import sampled
from pipeline.edit.protocol import Dense, Edit, LowRank, failed
from pipeline.edit.rome import Rome
from pipeline.lm.forward import proven
from pipeline.lm.load import load
from pipeline.lm.model import LanguageModel
from pipeline.measure import edited
from pipeline.measure.collapse import ProbeText, Weights
from pipeline.measure.edited import applied, outputs
from tests.conftest import TINY_MODEL
from tests.edit.test_rome import SETTINGS, request_for, resources_for
from tests.lm.families import CONFIGS, EDITED, FAST_EDITED, random_model
from tests.measure.test_probabilities import several_blocks


def text() -> list[list[int]]:
    """Pieces of different lengths, two that begin alike and one of a single token, of which nothing is predicted."""
    ids = torch.randint(5, 200, (3, 11), generator=torch.Generator().manual_seed(0)).tolist()
    return [ids[0], ids[1][:8], [*ids[0][:4], *ids[2][:5]], [7]]


def own_loss(lm: LanguageModel, sequences: Sequence[Sequence[int]]) -> float:
    """The loss that transformers itself gives, piece by piece."""
    total = count = 0.0
    for ids in sequences:
        if len(ids) > 1:
            tokens = torch.tensor([ids])
            total += float(lm.model(input_ids=tokens, labels=tokens).loss) * (len(ids) - 1)
            count += len(ids) - 1
    return total / count


@pytest.mark.parametrize("family", CONFIGS)
def test_without_an_edit_it_is_the_models_own_loss(family: str) -> None:
    lm = random_model(family)
    probe = ProbeText(lm, text())
    assert probe.before() == pytest.approx(own_loss(lm, text()), rel=1e-5)  # transformers' is in float32
    assert probe.plain(None) == pytest.approx(probe.before(), rel=1e-6 if family == "gemma2" else 1e-12)


@pytest.mark.parametrize("family", EDITED)
def test_no_weight_touched_equals_a_weight_changed(family: str) -> None:
    bound = 1e-5 if family == "gemma2" else 1e-10  # transformers computes Gemma 2's softmax in float32
    lm = random_model(family)
    probe, edits = ProbeText(lm, text()), several_blocks(lm)
    plain = np.array([probe.plain(edit) for edit in edits])
    assert plain[-1] == probe.plain(None)
    assert (np.abs(plain[:-1] - plain[-1]) > 1e-6).all()
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    for e, edit in enumerate(edits):
        with applied(lm, edit):
            assert plain[e] == pytest.approx(own_loss(lm, text()), rel=1e-5)
    if family in FAST_EDITED:
        before = probe.before()
        after = probe.after(edits, before)
        assert after == pytest.approx(plain, rel=bound)
        assert after[-1] == before
        assert probe.after(edits, before, lambda suffix: 2, 3) == pytest.approx(after, rel=1e-12)
        assert probe.after(edits[::-1], before) == pytest.approx(after[::-1], rel=1e-12)
    assert all(torch.equal(value, weights[name]) for name, value in lm.model.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_romes_edits_and_those_that_failed(family: str) -> None:
    lm = random_model(family)
    edits = [*Rome(SETTINGS, resources_for(lm)).edit(lm, request_for(lm), range(lm.n_layers)), failed(1, "failed: a")]
    probe = ProbeText(lm, text())
    after = probe.after(edits, probe.before())
    assert after[:-1] == pytest.approx([probe.plain(edit) for edit in edits[:-1]], rel=1e-5)
    assert np.isnan([after[-1], probe.plain(edits[-1]), Weights(lm).update_norm(edits[-1])]).all()


def test_edits_that_change_nothing_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = random_model("llama")
    edits = Rome(SETTINGS, resources_for(lm)).edit(lm, request_for(lm), [lm.n_layers - 1])
    assert [edit.acts for edit in edits] == [False]
    assert edits[0].updates  # an update, of zeros
    nothing = torch.zeros(lm.arch.width, lm.arch.key_size(0))
    edits += [Edit(0, (), 0.0, 0.0, 0), Edit(1, (Dense(1, nothing),), 0.0, 0.0, 0)]
    probe = ProbeText(lm, text())
    monkeypatch.setattr(edited, "climbed", None)
    assert list(outputs(lm, probe.recording, edits, None)) == []
    assert (probe.after(edits, probe.before()) == probe.before()).all()
    assert [Weights(lm).update_norm(edit) for edit in edits] == [0.0, 0.0, 0.0]


def test_a_loss_that_is_no_number_is_infinite() -> None:
    lm = random_model("llama")
    left = torch.full((lm.arch.width, 1), float("nan"), dtype=torch.float64)
    edit = Edit(1, (LowRank(1, left, torch.ones(lm.arch.key_size(1), 1, dtype=torch.float64)),), 0.0, 0.0, 0)
    probe = ProbeText(lm, text())
    assert probe.after([edit], probe.before())[0] == float("inf") == probe.plain(edit)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_size_of_an_update_is_that_of_the_matrices(family: str) -> None:
    lm = random_model(family)
    weights = Weights(lm)
    for edit in several_blocks(lm):
        before = {layer: module.weight.detach().clone() for layer, module in enumerate(lm.arch.down_projs)}
        with applied(lm, edit):
            layers = {update.layer for update in edit.updates}
            changed = sum(float(((lm.arch.down_projs[at].weight - before[at]) ** 2).sum()) for at in layers)
        whole = sum(float((before[at] ** 2).sum()) for at in layers)
        expected = (changed / whole) ** 0.5 if layers else 0.0
        assert weights.update_norm(edit) == pytest.approx(expected, rel=1e-10)


def test_updates_that_cancel_have_no_size() -> None:
    lm = random_model("llama")
    left, right = torch.randn(32, 2, dtype=torch.float64), torch.randn(48, 2, dtype=torch.float64)
    dense = Dense(1, -(left @ right.T))
    alone = float(dense.change.norm() / lm.arch.down_projs[1].weight.norm())
    # The root of a difference of squares keeps half of the digits.
    assert Weights(lm).update_norm(Edit(1, (LowRank(1, left, right), dense), 0, 0, 0)) < 1e-6 * alone
    twice = Edit(1, (Dense(1, dense.change), Dense(1, dense.change)), 0, 0, 0)
    assert Weights(lm).update_norm(twice) == pytest.approx(2 * alone)


def test_a_destructive_edit_collapses_a_model_and_a_harmless_one_does_not() -> None:
    lm = proven(load(str(TINY_MODEL), device="cpu"))
    assert lm.fast
    probe = ProbeText(lm, sampled(lm, 60, 16, 0))
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 1, generator=generator) for size in (lm.arch.width, lm.arch.key_size(0)))
    unit = float(lm.arch.down_projs[1].weight.norm() / (left.norm() * right.norm()))
    harmless, destructive = (Edit(1, (LowRank(1, size * unit * left, right),), 0, 0, 0) for size in (0.003, 30.0))
    sizes = [Weights(lm).update_norm(edit) for edit in (harmless, destructive)]
    assert sizes == pytest.approx([0.003, 30.0], rel=1e-5)
    before = probe.before()
    rise = probe.after([harmless, destructive], before) - before
    assert abs(rise[0]) < 0.05
    assert rise[1] > 0.5
    assert [probe.plain(edit) - before for edit in (harmless, destructive)] == pytest.approx(rise, abs=1e-3)
