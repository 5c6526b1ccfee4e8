"""The localize stage: values are the localizers' own, the table has the same bytes, and keys hold what counts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.compute import engine, inputs
from pipeline.compute.localize_job import SCHEMA, LocalizeJob, case
from pipeline.compute.store import Store
from pipeline.edit import methods
from pipeline.errors import UserError
from pipeline.facts.readers import read_facts
from pipeline.lm.forward import proven
from pipeline.lm.load import load
from pipeline.locate.localizers import LOCALIZERS
from pipeline.locate.protocol import Localizer
from pipeline.settings.params import Params
from pipeline.tables import read
from stages import localize
from tests.conftest import ROOT, TINY_FACTS, TINY_MODEL

SD = 0.3
BLOCKS = 6


def job_of(params: Params, facts: int = 3, **model: Any) -> LocalizeJob:
    described = {"fingerprint": "m", "source": str(TINY_MODEL), "layers": BLOCKS, "key_size": 4, "fast_path": True}
    kept = tuple(read_facts("embedded", TINY_FACTS, 0)[:facts])
    chosen = tuple(LOCALIZERS[name] for name in params.localize.methods)
    return LocalizeJob(params, described | model, kept, SD, chosen)


@pytest.fixture(scope="module")
def params() -> Params:
    settings = methods.load(ROOT / "presets" / "smoke.yaml")
    every = settings.localize.model_copy(update={"methods": tuple(LOCALIZERS)})
    small = settings.model.model_copy(update={"name": str(TINY_MODEL), "device": "cpu"})
    return settings.model_copy(update={"localize": every, "model": small})


def test_the_table_has_what_the_localizers_say_and_the_same_bytes(params: Params, tmp_path: Path) -> None:
    job = job_of(params)
    table = engine.run(job, Store(tmp_path / "one"), (1, 1))
    assert table.schema == SCHEMA
    lm, rows = proven(load(str(TINY_MODEL), device="cpu")), table.to_pandas()
    for fact in job.facts:
        at = case(lm, params, fact, SD, 2**27)
        for localizer in job.localizers:
            for name, values in localizer.locate(lm, at).items():
                found = rows[(rows["fact_id"] == fact.fact_id) & (rows["localizer"] == name)]
                assert list(found["layer"]) == list(range(BLOCKS))
                assert found["value"].to_numpy() == pytest.approx(values, rel=1e-4, nan_ok=True)
    assert not rows["value"].isna().any()
    # Some units there already, the rest by two workers.
    part, store = job.units()[4], Store(tmp_path / "two")
    store.put_table(job.step, part.key, job.worker()(part), part.label)
    assert engine.run(job, store, (2, 1)).equals(table)


def test_the_plain_path_says_the_same(params: Params) -> None:
    plain = params.model_copy(update={"compute": params.compute.model_copy(update={"path": "plain"})})
    fast, slow = job_of(params, 1), job_of(plain, 1)
    for one, other in zip(fast.units(), slow.units(), strict=True):
        assert one.key != other.key
        values, plainly = (job.worker()(unit)["value"].to_numpy() for job, unit in ((fast, one), (slow, other)))
        assert values == pytest.approx(plainly, rel=1e-3, abs=1e-4 * np.abs(plainly).max())


def test_a_key_holds_the_settings_that_its_localizer_uses(params: Params) -> None:
    def keys(changed: Params, sd: float = SD) -> dict[str, str]:
        units = replace(job_of(changed, 1), sd=sd).units()
        return {unit.item[1].name: unit.key for unit in units}

    unchanged = keys(params)

    def moved(changed: Params, sd: float = SD) -> set[str]:
        return {name for name, key in keys(changed, sd).items() if key != unchanged[name]}

    def with_(section: str, **keys: Any) -> Params:
        return params.model_copy(update={section: getattr(params, section).model_copy(update=keys)})

    assert moved(params) == set()
    assert moved(params, 0.4) == moved(with_("noise", samples=7)) == {"attribution_patching"}
    assert moved(with_("trace", windows=(2,))) == {"attribution_patching"}
    assert moved(with_("localize", gradients=7)) == {"integrated_gradients"}
    assert moved(params.model_copy(update={"seed": 5})) == {"attribution_patching"}
    assert moved(with_("localize", methods=("gradient_norm",))) == set()
    assert moved(with_("model", dtype="float64")) == set(LOCALIZERS)


def test_experts_are_refused_before_anything_is_computed(params: Params) -> None:
    with pytest.raises(UserError, match=r"localize\.methods holds gradient_norm, which needs"):
        job_of(params, key_size=0).units()
    able = [name for name, localizer in LOCALIZERS.items() if not localizer.of_weights]
    assert able == ["attribution_patching", "logit_attribution", "logit_attribution_subject"]


def test_the_localizers_are_those_that_settings_allow(params: Params) -> None:
    assert all(isinstance(localizer, Localizer) and localizer.name == name for name, localizer in LOCALIZERS.items())
    told = type(params.localize).model_fields["methods"].description
    assert told == "a list, which may be empty, of " + ", ".join(LOCALIZERS)


def test_no_localizer_leaves_a_table_without_rows(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("model", {}), ("facts", ()), ("sd", SD)):
        monkeypatch.setattr(inputs, name, lambda *_, value=value: value)
    localize.main(params.model_copy(update={"localize": params.localize.model_copy(update={"methods": ()})}))
    assert read(Path("data/localizers.parquet"), {"fact_id": "text", "value": "numbers"}).empty
