"""The preset of the second model: comparable with the default run, and large enough for intervals."""

from pipeline.analysis.trust import MIN_FACTS_OF_MEANS
from pipeline.edit.methods import load
from pipeline.lm.packaged import check_bos
from pipeline.settings.params import check_against_model
from tests.conftest import ROOT


def test_the_second_model_s_run_is_large_enough_for_intervals_and_needs_no_hub() -> None:
    params = load(ROOT / "presets/second-model.yaml")
    check_bos(params.model.name, params.model.add_bos)
    check_against_model(params, 18)
    assert params.model.name == "packaged:gemma-3-270m"
    assert params.facts.source == "embedded"
    assert params.facts.count is not None
    assert params.facts.count >= max(50, MIN_FACTS_OF_MEANS)
    default = load(ROOT / "presets/default.yaml")
    assert params.facts.relations == default.facts.relations
    assert params.regressions == default.regressions
    assert {"error_injection", "fact_erasure"} <= set(params.edit.problems)
