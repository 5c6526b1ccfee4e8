"""Traces and edits of a model that knows its facts come out as the papers say: what they mean, not what they equal.

Everything goes through the jobs that the stages run, with the smoke preset's settings and a few more facts. The
bounds leave room for a model trained on another machine; the comments say what was measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from ruamel.yaml import YAML

from pipeline.analysis.scores import fall, rise
from pipeline.compute import edit_job, known_job, statistics, trace_job
from pipeline.compute.edit_job import EditJob
from pipeline.compute.fetch import opened
from pipeline.compute.known_job import KnownJob
from pipeline.compute.trace_job import TraceJob
from pipeline.edit import methods, problems
from pipeline.edit.methods import METHODS
from pipeline.facts.choose import KnownRule, choose, trim
from pipeline.facts.fact import Fact, Known
from pipeline.facts.known import fact_prompt
from pipeline.facts.readers import read_facts
from pipeline.lm import noise
from pipeline.lm.forward import resumes
from pipeline.lm.model import LanguageModel
from pipeline.lm.noise import NoiseTable
from pipeline.locate.tracing import FactTrace
from pipeline.settings.fields import MODULES, PROBLEMS
from pipeline.settings.params import Params
from tests.conftest import ROOT, TINY_FACTS

FACTS = 16
LAST = 5  # the last block


@dataclass(frozen=True, kw_only=True)
class World:
    """The model, what it knows, and everything that the traces and edits of `facts` need."""

    params: Params
    lm: LanguageModel
    model: dict[str, Any]
    known: list[Known]
    facts: tuple[Fact, ...]
    sd: float
    folder: Path
    weights: dict[str, torch.Tensor]  # copies, from before anything was traced or edited

    def edit_job(self, problem: str, facts: tuple[Fact, ...] | None = None, **compute: Any) -> EditJob:
        settings = self.params.model_copy(update={"compute": self.params.compute.model_copy(update=compute)})
        manifest, prefixes = statistics.read(self.folder)
        chosen = self.facts if facts is None else facts
        return EditJob(settings, self.model, chosen, self.sd, METHODS["rome"], problem, manifest, prefixes, self.folder)

    def trace_job(self, facts: tuple[Fact, ...], **trace: Any) -> TraceJob:
        settings = self.params.model_copy(update={"trace": self.params.trace.model_copy(update=trace)})
        return TraceJob(settings, self.model, facts, self.sd)


def compute(job: KnownJob | TraceJob | EditJob) -> pa.Table:
    """What the stage gets: all units of the job, by one worker."""
    work = job.worker()
    return pa.concat_tables([work(unit) for unit in job.units()])


def smoke(folder: Path, **changes: dict[str, Any]) -> Params:
    """presets/smoke.yaml with some keys of its sections changed, by way of a file in `folder`."""
    yaml = YAML()
    tree = yaml.load((ROOT / "presets" / "smoke.yaml").read_text("utf-8"))
    for section, keys in changes.items():
        tree[section].update(keys)
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)
    return methods.load(folder / "params.yaml")


@pytest.fixture(scope="module")
def world(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    settings = smoke(
        folder,
        model={"name": str(tiny_folder), "device": "cpu"},
        facts={"path": str(TINY_FACTS), "count": FACTS},
    )
    lm = opened(settings)
    model = lm.describe() | {"fast_path": resumes(lm)}
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    facts = trim(read_facts(settings.facts.source, TINY_FACTS, 0), 3, 3)
    # Every worker gets this one model, so that a weight that one of them leaves changed would be seen.
    with pytest.MonkeyPatch.context() as patch:
        for module in (known_job, trace_job, edit_job):
            patch.setattr(module, "set_up", lambda params, source, fast: replace(lm, fast=fast))
        job = KnownJob(settings, model, tuple(facts))
        known = job.read(compute(job))
        chosen = choose(facts, known, KnownRule(**settings.facts.known.model_dump()), FACTS)
        kept = tuple(fact for fact, (keep, _) in zip(facts, chosen, strict=True) if keep)
        sd = settings.noise.in_embedding_units(noise.embedding_sd(lm, (fact.subject for fact in facts)))
        key = statistics.key_of(settings, model)
        statistics.compute(lm, settings, folder / "statistics", key)
        yield World(
            params=settings, lm=lm, model=model, known=known, facts=kept, sd=sd,
            folder=folder / "statistics", weights=weights,
        )  # fmt: skip


@pytest.fixture(scope="module")
def traces(world: World) -> pd.DataFrame:
    """Mean effect over facts by (module, token_role) and layer, on prompts with the subject in their middle."""
    stated = {fact.fact_id: fact for fact in read_facts("embedded", TINY_FACTS, 0)}
    # The first paraphrases do not begin with the subject, as the table's prompts do.
    inside = tuple(
        replace(fact, prompt=stated[fact.fact_id].paraphrases[0].replace(fact.subject, "{}")) for fact in world.facts
    )
    assert all(fact.subject_at > 0 for fact in inside)
    return compute(world.trace_job(inside, modules=MODULES, windows=(1,))).to_pandas()


@pytest.fixture(scope="module")
def edits(world: World) -> dict[str, pd.DataFrame]:
    return {problem: compute(world.edit_job(problem)).to_pandas() for problem in PROBLEMS}


def rewrites(edits: pd.DataFrame) -> pd.DataFrame:
    """The rows of the facts' own prompts, of edits that were made."""
    return edits[(edits["prompt_kind"] == "rewrite") & (edits["status"] == "ok")]


def by_fact(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Facts by layers."""
    return table.pivot(index="fact_id", columns="layer", values=column)


def test_the_model_knows_its_facts(world: World) -> None:
    assert sum(fact.greedy_correct for fact in world.known) >= 40  # all 96
    assert len(world.facts) == FACTS
    facts = read_facts("embedded", TINY_FACTS, 0)
    p = {fact.fact_id: known.p_true for fact, known in zip(facts, world.known, strict=True)}
    assert min(p[fact.fact_id] for fact in world.facts) > 0.5


def test_noise_on_the_subject_makes_the_model_forget(traces: pd.DataFrame) -> None:
    each = traces.groupby("fact_id")[["p_clean", "p_corrupt"]].first()
    assert (each["p_clean"] - each["p_corrupt"]).min() > 0.1
    assert (each["p_clean"] - each["p_corrupt"]).mean() > 0.35  # 0.56


@pytest.mark.parametrize("module", ["mlp", "hidden"])
def test_below_the_trace_is_at_the_last_subject_token(traces: pd.DataFrame, module: str) -> None:
    mean = traces[traces["module"] == module].groupby(["token_role", "layer"])["effect"].mean().unstack()
    others = mean.drop(index="last_subject")
    assert mean.loc["last_subject", 0] > 0.2  # mlp 0.45, hidden 0.53
    assert mean.loc["last_subject", 0] > 3 * others[0].max()
    assert mean.loc["last_subject"].idxmax() <= 1
    assert mean.loc["last_subject", LAST] == pytest.approx(0, abs=1e-6)  # nothing reads it any more


def test_above_the_trace_is_at_the_last_token(traces: pd.DataFrame) -> None:
    for module in ("attn", "hidden"):
        mean = traces[traces["module"] == module].groupby(["token_role", "layer"])["effect"].mean().unstack()
        assert mean[LAST].idxmax() == "last_token"
        assert mean.loc["last_token", LAST] > 0.2  # attn 0.40, hidden 0.56
        assert mean.loc["last_token", LAST] > 3 * abs(mean.loc["last_token", 0])
    # The subject's MLPs tell what the last token's attention then fetches: that is what the two figures show.
    attention = traces[traces["module"] == "attn"].groupby(["token_role", "layer"])["effect"].mean()
    assert attention.abs().groupby("token_role").max().idxmax() == "last_token"


def test_tokens_before_the_subject_restore_nothing(world: World, traces: pd.DataFrame) -> None:
    before = traces[traces["token_role"] == "before_subject"]
    assert set(before["module"]) == set(MODULES)
    assert (before["effect"] == 0).all()
    assert (before["p_restored"] == before["p_corrupt"]).all()
    # That is not only so by construction: whole forwards with the token restored say the same.
    fact = replace(world.facts[0], prompt="The house of {} is")
    table = NoiseTable(0, fact.fact_id, world.sd, 2, world.lm.embedding_width)
    traced = FactTrace(world.lm, fact_prompt(world.lm, fact), table, 2)
    for module in MODULES:
        assert traced.plain_cell(module, 1, 0, 2) == pytest.approx(traced.p_corrupt, rel=1e-4)
        assert traced.plain_cell("mlp", 1, traced.prompt.last_subject, 0) != pytest.approx(traced.p_corrupt, rel=1e-2)


def test_every_edit_was_made_or_says_why_not(edits: dict[str, pd.DataFrame]) -> None:
    for problem, table in edits.items():
        assert table["fact_id"].nunique() == FACTS
        if problem != "tracing_reversal":
            assert set(table["status"]) == {"ok"}
    reversal = edits["tracing_reversal"].groupby("fact_id")["status"].first()
    assert set(reversal) == {"ok", "dropped: under noise the model still says target_true"}
    assert (reversal == "ok").sum() >= 4  # 8


def test_error_injection_makes_the_false_object_the_answer(edits: dict[str, pd.DataFrame]) -> None:
    table = rewrites(edits["error_injection"])
    p = by_fact(table, "p_post")
    assert table["p_pre"].max() < 0.2
    assert p.mean().max() > 0.8  # 0.93
    assert (p.max(axis=1) > 0.9).mean() >= 0.9
    assert by_fact(table, "p_baseline_post")[p.mean().idxmax()].max() < 0.2  # target_true is no longer the answer


def test_an_early_edit_is_of_the_fact_and_not_of_its_wording(edits: dict[str, pd.DataFrame]) -> None:
    table = edits["error_injection"]
    asked = table[(table["prompt_kind"] == "paraphrase") & (table["layer"] == 0)]
    assert asked["p_pre"].mean() < 0.2
    assert asked["p_post"].mean() > 0.6  # 0.9


def test_neighbors_move_less_than_the_fact(edits: dict[str, pd.DataFrame]) -> None:
    table = edits["error_injection"].assign(moved=lambda t: (t["p_post"] - t["p_pre"]).abs())
    moved = table.groupby(["layer", "prompt_kind"])["moved"].mean().unstack()
    assert (moved["neighborhood"] < 0.6 * moved["rewrite"])[: LAST - 1].all()
    assert moved.loc[1 : LAST - 1, "neighborhood"].max() < 0.15


def test_tracing_reversal_goes_for_what_the_noised_model_says(edits: dict[str, pd.DataFrame]) -> None:
    table = rewrites(edits["tracing_reversal"])
    assert (table["target"] != "").all()
    assert (table["target"] != table["baseline"]).all()
    # Neither is it the first word of a true object of several words: the model would still say the fact.
    first = table["baseline"].str.split().str[0]
    assert (table["target"] != first).all()
    assert by_fact(table, "p_post").mean().max() > 0.7
    assert by_fact(table, "p_post").mean().max() > table["p_pre"].mean() + 0.4


def test_erasure_lowers_the_true_object(edits: dict[str, pd.DataFrame]) -> None:
    table = rewrites(edits["fact_erasure"])
    score = by_fact(table.assign(score=fall(table["p_pre"], table["p_post"])), "score")
    assert score.max(axis=1).min() > 0.8
    assert score.mean().max() > 0.9


def test_amplification_raises_the_true_object_where_there_is_room(edits: dict[str, pd.DataFrame]) -> None:
    table = rewrites(edits["fact_amplification"])
    score = by_fact(table.assign(score=rise(table["p_pre"], table["p_post"])), "score")
    best = score.mean().idxmax()
    at_best = table[table["layer"] == best]
    assert (at_best["p_post"] - at_best["p_pre"]).min() > -0.02
    room = at_best[at_best["p_pre"] < 0.9]
    assert len(room) >= 1
    assert (room["p_post"] > room["p_pre"]).all()
    assert score[best].mean() > 0.3  # 0.6


def test_forcing_brings_the_true_object_back_on_noised_input(edits: dict[str, pd.DataFrame]) -> None:
    forced, clean = rewrites(edits["fact_forcing"]), rewrites(edits["fact_amplification"])
    # Before the edit, the noised subject hides what the clean one tells.
    assert by_fact(forced, "p_pre")[0].mean() < by_fact(clean, "p_pre")[0].mean() - 0.3
    gain = by_fact(forced, "p_post") - by_fact(forced, "p_pre")
    assert gain.mean().max() > 0.2  # 0.32
    assert (gain.max(axis=1) > 0.05).mean() >= 0.9


def test_an_edit_of_the_last_block_reaches_no_later_token(edits: dict[str, pd.DataFrame]) -> None:
    for table in edits.values():
        last = table[(table["layer"] == LAST) & (table["status"] == "ok")]
        kept = last[last["prompt_kind"] == "rewrite"]
        assert len(kept)
        assert kept["p_post"].to_numpy() == pytest.approx(kept["p_pre"].to_numpy(), rel=1e-4)


def test_in_the_weights_an_edit_does_the_same_and_leaves_them_as_they_were(
    world: World, edits: dict[str, pd.DataFrame], traces: pd.DataFrame
) -> None:
    fact = world.facts[:1]
    plain = compute(world.edit_job("error_injection", fact, path="plain")).to_pandas()
    fast = edits["error_injection"]
    fast = fast[fast["fact_id"] == fact[0].fact_id].reset_index(drop=True)
    assert (plain["p_post"] - plain["p_pre"]).abs().max() > 0.5
    # Twenty steps of Adam carry rounding far; the two agree on every answer, not in every digit.
    np.testing.assert_allclose(plain["p_post"], fast["p_post"], atol=0.05)
    now = world.lm.model.state_dict()
    assert set(now) == set(world.weights)
    assert [name for name, value in now.items() if not torch.equal(value, world.weights[name])] == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in world.lm.model.modules())


@pytest.mark.parametrize(
    ("o_noise", "target_true", "same"),
    [
        ("Paris", "Paris", True),
        ("New", "New York", True),
        ("Saint", "Saint-Denis", True),
        ("New", "Newcastle", False),
        ("York", "New York", False),
        ("Rome", "Paris", False),
        ("Parisian", "Paris", False),
    ],
)
def test_a_noised_answer_that_begins_the_true_object_still_says_it(o_noise: str, target_true: str, same: bool) -> None:
    assert problems.same_answer(o_noise, target_true) is same
