"""Traces and edits of a model that knows its facts come out as the papers say: what they mean, not what they equal.

Everything goes through the jobs that the stages run, with the smoke preset's settings and a few more facts, on the
model that is committed (tests/make_tiny_model.py). The bounds are no fit to it: the comments say what the nine models
gave, lowest to highest, that the seeds 0, 1 and 2 train with the instructions default, avx2 and avx512. `lost` is the
mean fall of the true object's probability under noise.
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

from pipeline.analysis.scores import fall
from pipeline.compute import edit_job, known_job, statistics, trace_job
from pipeline.compute.edit_job import EditJob
from pipeline.compute.fetch import opened
from pipeline.compute.keys import path
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
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL
from tests.make_tiny_model import MOST_BYTES, unknown

pytestmark = pytest.mark.rounding

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
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    settings = smoke(
        folder,
        model={"name": str(TINY_MODEL), "device": "cpu"},
        facts={"path": str(TINY_FACTS), "count": FACTS},
    )
    lm = opened(settings)
    model = lm.describe() | {"fast_path": resumes(lm)}
    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    facts = trim(read_facts(settings.facts.source, TINY_FACTS, 0), 3, 3)
    # Every worker gets this one model, so that a weight that one of them leaves changed would be seen.
    with pytest.MonkeyPatch.context() as patch:
        for module in (known_job, trace_job, edit_job):
            patch.setattr(module, "loaded", lambda params, model: replace(lm, fast=path(params, model) == "fast"))
        job = KnownJob(settings, model, tuple(facts))
        known = job.read(compute(job))
        chosen = choose(facts, known, KnownRule(**settings.facts.known.model_dump()), FACTS)
        kept = tuple(fact for fact, (keep, _) in zip(facts, chosen, strict=True) if keep)
        sd = settings.noise.in_embedding_units(noise.embedding_sd(lm, (fact.subject for fact in facts)))
        statistics.compute(lm, settings, folder / "statistics", model, 1)
        yield World(
            params=settings, lm=lm, model=model, known=known, facts=kept, sd=sd,
            folder=folder / "statistics", weights=weights,
        )  # fmt: skip


@pytest.fixture(scope="module")
def inside(world: World) -> tuple[Fact, ...]:
    """The facts, with prompts that have the subject in their middle."""
    stated = {fact.fact_id: fact for fact in read_facts("embedded", TINY_FACTS, 0)}
    # The first paraphrases do not begin with the subject, as the table's prompts do.
    facts = tuple(
        replace(fact, prompt=stated[fact.fact_id].paraphrases[0].replace(fact.subject, "{}")) for fact in world.facts
    )
    assert all(fact.subject_at > 0 for fact in facts)
    return facts


@pytest.fixture(scope="module")
def traces(world: World, inside: tuple[Fact, ...]) -> pd.DataFrame:
    return compute(world.trace_job(inside, modules=MODULES, windows=(1,))).to_pandas()


@pytest.fixture(scope="module")
def edits(world: World) -> dict[str, pd.DataFrame]:
    return {problem: compute(world.edit_job(problem)).to_pandas() for problem in PROBLEMS}


def rewrites(edits: pd.DataFrame) -> pd.DataFrame:
    """The rows of the facts' own prompts, of edits that were made."""
    return edits[(edits["prompt_kind"] == "rewrite") & (edits["status"] == "ok")]


def lost(traces: pd.DataFrame) -> float:
    each = traces.groupby("fact_id")[["p_clean", "p_corrupt"]].first()
    return float((each["p_clean"] - each["p_corrupt"]).mean())


def mean_effects(traces: pd.DataFrame, module: str) -> pd.DataFrame:
    """Token roles by layers."""
    return traces[traces["module"] == module].groupby(["token_role", "layer"])["effect"].mean().unstack()


def by_fact(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Facts by layers."""
    return table.pivot(index="fact_id", columns="layer", values=column)


def test_the_model_knows_its_facts(world: World) -> None:
    assert unknown(TINY_MODEL) == []
    assert sum(path.stat().st_size for path in TINY_MODEL.iterdir()) <= MOST_BYTES
    assert next(world.lm.model.parameters()).dtype == torch.float32
    assert all(fact.greedy_correct for fact in world.known)
    assert len(world.facts) == FACTS
    facts = read_facts("embedded", TINY_FACTS, 0)
    p = {fact.fact_id: known.p_true for fact, known in zip(facts, world.known, strict=True)}
    assert min(p[fact.fact_id] for fact in world.facts) > 0.5  # 0.69 to 0.84


def test_noise_on_the_subject_makes_the_model_forget(traces: pd.DataFrame) -> None:
    each = traces.groupby("fact_id")[["p_clean", "p_corrupt"]].first()
    assert (each["p_corrupt"] < each["p_clean"]).all()  # by 0.23 at least
    assert lost(traces) > 0.35  # 0.54 to 0.61


@pytest.mark.parametrize("module", ["mlp", "hidden"])
def test_below_the_trace_is_at_the_last_subject_token(traces: pd.DataFrame, module: str) -> None:
    mean = mean_effects(traces, module)
    others = mean.drop(index="last_subject")
    # Of what is lost: mlp 0.78 to 0.89, hidden 0.92 to 0.97
    assert mean.loc["last_subject", 0] > 0.5 * lost(traces)
    # mlp 0.04 to 0.094, hidden 0.023 to 0.098
    assert others[0].max() < 0.25 * lost(traces)
    # It is gone above: hidden 2.9 to 24 times, mlp 2e-4 to 0.025 of it.
    assert mean.loc["last_subject", :1].sum() > 1.5 * mean.loc["last_subject", LAST - 1 :].sum()
    assert mean.loc["last_subject", LAST] == pytest.approx(0, abs=1e-6)  # nothing reads it any more


def test_above_the_trace_is_at_the_last_token(traces: pd.DataFrame) -> None:
    hidden, attention = mean_effects(traces, "hidden"), mean_effects(traces, "attn")
    # The last block's output at the last token is the answer's first token; later ones still read the noise.
    assert hidden.loc["last_token", LAST] == pytest.approx(lost(traces), rel=0.02)  # 1 of it
    assert hidden.loc["last_token", 0] < 0.15 * lost(traces)  # 0.013 to 0.031 of it
    # Which of the upper blocks fetches the answer differs from model to model; that one of them does, does not.
    fetched = attention.loc["last_token"]
    assert fetched[LAST - 2 :].sum() > 0.5 * lost(traces)  # 0.94 to 1.1 of it
    assert fetched[LAST - 2 :].sum() > 1.5 * fetched[: LAST - 2].sum()  # 4.1 to 20 times
    # The subject's MLPs tell what the last token's attention then fetches: that is what the two figures show.
    largest = attention.abs().max(axis=1)
    assert largest["last_token"] > 4 * largest.drop("last_token").max()  # 12 to 42 times


def test_tokens_before_the_subject_restore_nothing(
    world: World, traces: pd.DataFrame, inside: tuple[Fact, ...]
) -> None:
    before = traces[traces["token_role"] == "before_subject"]
    assert set(before["module"]) == set(MODULES)
    assert (before["effect"] == 0).all()
    assert (before["p_restored"] == before["p_corrupt"]).all()
    # That is not only so by construction: whole forwards with the token restored say the same.
    effects = []
    for fact in inside[:8]:
        table = NoiseTable(0, fact.fact_id, world.sd, 2, world.lm.embedding_width)
        traced = FactTrace(world.lm, fact_prompt(world.lm, fact), table, 2)
        for module in MODULES:
            assert traced.plain_cell(module, 1, 0, 2) == pytest.approx(traced.p_corrupt, rel=1e-3)
        effects.append(traced.plain_cell("mlp", 1, traced.prompt.last_subject, 0) - traced.p_corrupt)
    assert np.mean(effects) > 0.15  # and the last subject token's MLP a lot: 0.42 to 0.58


def test_every_edit_was_made_or_says_why_not(edits: dict[str, pd.DataFrame]) -> None:
    for problem, table in edits.items():
        assert table["fact_id"].nunique() == FACTS
        if problem != "tracing_reversal":
            assert set(table["status"]) == {"ok"}
    reversal = edits["tracing_reversal"].groupby("fact_id")["status"].first()
    assert set(reversal) == {"ok", "dropped: under noise the model still says target_true"}
    assert (reversal == "ok").sum() >= 2  # 4 to 7


def test_error_injection_makes_the_false_object_the_answer(edits: dict[str, pd.DataFrame]) -> None:
    table = rewrites(edits["error_injection"])
    p = by_fact(table, "p_post")
    assert table["p_pre"].mean() < 0.1  # 0.0098 to 0.029
    assert p.mean().max() > 0.8  # 0.92 to 0.98
    assert p.mean().idxmax() < LAST - 1
    assert p.max(axis=1).mean() > 0.85  # 0.94 to 0.98
    assert (p.max(axis=1) > 0.5).mean() > 0.75  # 0.94 to 1; then nothing else can be the answer
    # target_true was the answer.
    assert table["p_baseline_pre"].mean() > 0.8  # 0.9 to 0.94
    assert by_fact(table, "p_baseline_post")[p.mean().idxmax()].mean() < 0.1  # 0.0013 to 0.021


def test_an_early_edit_is_of_the_fact_and_not_of_its_wording(edits: dict[str, pd.DataFrame]) -> None:
    table = edits["error_injection"]
    asked = table[(table["prompt_kind"] == "paraphrase") & (table["layer"] == 0)]
    assert asked["p_pre"].mean() < 0.1  # 0.011 to 0.03
    assert asked["p_post"].mean() > 0.6  # 0.86 to 0.96


def test_neighbors_move_less_than_the_fact(edits: dict[str, pd.DataFrame]) -> None:
    table = edits["error_injection"].assign(moved=lambda t: (t["p_post"] - t["p_pre"]).abs())
    moved = table.groupby(["layer", "prompt_kind"])["moved"].mean().unstack().loc[: LAST - 1]
    assert moved.loc[0, "neighborhood"] < 0.6 * moved.loc[0, "rewrite"]  # 0.15 to 0.28 of it
    assert moved["neighborhood"].mean() < 0.25 * moved["rewrite"].mean()  # 0.05 to 0.089 of it


def test_tracing_reversal_goes_for_what_the_noised_model_says(edits: dict[str, pd.DataFrame]) -> None:
    table = rewrites(edits["tracing_reversal"])
    assert (table["target"] != "").all()
    assert (table["target"] != table["baseline"]).all()
    # Neither is it the first word of a true object of several words: the model would still say the fact.
    first = table["baseline"].str.split().str[0]
    assert (table["target"] != first).all()
    assert table["p_pre"].mean() < 0.2  # 0.0099 to 0.045
    assert by_fact(table, "p_post").mean().max() > 0.7  # 0.95 to 0.98


def test_erasure_lowers_the_true_object(edits: dict[str, pd.DataFrame]) -> None:
    table = rewrites(edits["fact_erasure"])
    score = by_fact(table.assign(score=fall(table["p_pre"], table["p_post"])), "score")
    assert score.max(axis=1).min() > 0.8  # 0.94 to 0.98
    assert score.mean().max() > 0.9  # 0.98 to 0.99


def test_amplification_raises_the_true_object_where_there_is_room(edits: dict[str, pd.DataFrame]) -> None:
    table = rewrites(edits["fact_amplification"])
    pre, post = by_fact(table, "p_pre"), by_fact(table, "p_post")
    best = post.mean().idxmax()
    rises = post[best] - pre[best]
    assert rises.min() > -0.03  # -0.0052 to 0.024
    assert (1 - post[best]).mean() < 0.75 * (1 - pre[best]).mean()  # 0.28 to 0.51 of it
    # The half that the model was less sure of gains more than the other.
    room = pre[best] <= pre[best].median()
    assert rises[room].mean() > rises[~room].mean() + 0.005  # 0.04 to 0.081


def test_forcing_brings_the_true_object_back_on_noised_input(edits: dict[str, pd.DataFrame]) -> None:
    forced, clean = rewrites(edits["fact_forcing"]), rewrites(edits["fact_amplification"])
    # Before the edit, the noised subject hides what the clean one tells.
    assert by_fact(forced, "p_pre")[0].mean() < by_fact(clean, "p_pre")[0].mean() - 0.3  # 0.5 to 0.56
    gain = by_fact(forced, "p_post") - by_fact(forced, "p_pre")
    assert gain.mean().max() > 0.15  # 0.29 to 0.38
    assert (gain.max(axis=1) > 0).mean() > 0.8  # all, by 0.027 at least


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
