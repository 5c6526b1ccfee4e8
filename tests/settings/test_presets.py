"""The presets: each is accepted as it stands, explains its keys, and holds what its name promises."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.edit.methods import load
from pipeline.settings.fields import PROBLEMS
from pipeline.settings.params import Params, check_against_model
from tests.conftest import ROOT

PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.name)
def test_params_and_presets_load(path: Path) -> None:
    params = load(path)
    assert Params.model_validate(params.model_dump()).model_dump() == params.model_dump()


def committed(name: str) -> bytes:
    """A file as Git's last commit has it, as a user's may differ; without a commit, as it lies there."""
    shown = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True)
    return shown.stdout if shown.returncode == 0 else (ROOT / name).read_bytes()


def test_the_committed_params_are_the_default_preset() -> None:
    assert committed("params.yaml") == committed("presets/default.yaml")


def test_the_presets_are_those_promised() -> None:
    promised = "default smoke reference second-model cluster methods robustness counterfact paper-gptj paper-gpt2-xl"
    assert {path.stem for path in PRESETS} == set(promised.split())


@pytest.mark.parametrize("name", ["default", "smoke"])
def test_smoke_and_default_need_no_hub(name: str) -> None:
    params = load(ROOT / f"presets/{name}.yaml")
    assert params.model.name.partition(":")[0] in ("packaged", "trained")
    assert params.statistics.text == "model"
    assert params.facts.source == "embedded"
    assert params.edit.problems == PROBLEMS


@pytest.mark.parametrize(
    ("name", "blocks", "sd", "window", "layers"),
    [
        ("paper-gptj", 28, 0.094, 5, (0, 4, 5, 8, 12, 16, 20, 24, 27)),
        ("paper-gpt2-xl", 48, 0.1, 10, (0, 4, 8, 12, 16, 17, 20, 24, 28, 32, 36, 40, 44, 47)),
    ],
)
def test_paper_presets_hold_the_papers_settings(
    name: str, blocks: int, sd: float, window: int, layers: tuple[int, ...]
) -> None:
    params = load(ROOT / f"presets/{name}.yaml")
    check_against_model(params, blocks)
    assert params.noise.sd == sd
    assert params.noise.samples == 10
    assert params.trace.windows == (window,)
    assert params.trace.modules == ("mlp",)
    assert params.edit.layers == layers
    assert (params.facts.known.rule, params.facts.known.within_tokens) == ("within", 36)
    assert params.facts.count is None
    assert (params.statistics.prefix_lengths, params.statistics.prefixes_per_length) == ((5, 10), 10)
    assert params.for_problem("rome", "error_injection")["kl_factor"] == 1.0
    forcing = params.for_problem("rome", "fact_forcing")
    assert (forcing["steps"], forcing["learning_rate"]) == (25, 0.05)
    assert (params.sections["rome"]["stop_loss"], params.sections["rome"]["erasure_loss"]) == (0.05, "exp_of_mean")
    assert (params.edit.forcing_noise_samples, params.edit.reversal_target) == (10, "first_word")
    assert params.for_problem("rome", "fact_erasure").items() <= params.sections["rome"].items()


def keys_without_comment(text: str) -> Iterator[str]:
    """Keys that set a value on a line without a comment; inner mappings of by_problem are not settings."""
    lines = text.splitlines()
    for line in lines:
        key, colon, rest = line.partition(":")
        is_setting = bool(colon) and key.strip().isidentifier() and bool(rest.strip())
        if is_setting and key.strip() not in PROBLEMS and "  # " not in line:
            yield line


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PRESETS], ids=lambda path: path.name)
def test_every_key_is_explained_on_its_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert list(keys_without_comment(text)) == []
    assert max(map(len, text.splitlines())) <= 110


def test_a_key_without_comment_would_be_noticed() -> None:
    assert list(keys_without_comment("seed: 0  # the seed\nrome:\n  steps: 3\n")) == ["  steps: 3"]
