"""params.yaml and the presets: what is accepted, and the sentence for what is not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.edit.methods import SETTINGS, load
from pipeline.errors import UserError
from pipeline.settings.fields import parse_memory
from pipeline.settings.params import Params, check_against_model, with_methods

ROOT = Path(__file__).parents[2]
MISSING = "(taken out)"


def tree() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load((ROOT / "presets/default.yaml").read_text(encoding="utf-8"))


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The default params with the dotted keys of `changes` set, or taken out where the value is MISSING."""
    whole = tree()
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        inner = whole
        for section in sections:
            inner = inner[section]
        if value is MISSING:
            del inner[key]
        else:
            inner[key] = value
    return whole


def refusal(folder: Path, content: dict[str, Any] | bytes) -> str:
    """What `load` says of a params file with this content; it has to be one sentence that names the file."""
    path = folder / "params.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("w", encoding="utf-8") as stream:
            YAML(typ="safe", pure=True).dump(content, stream)
    with pytest.raises(UserError) as caught:
        load(path)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    assert "\n" not in told
    assert len(told) < 500
    return told.removeprefix(f"{path}: ")


BAD_VALUES: list[tuple[dict[str, Any], str, str]] = [
    # unknown and misspelt keys, with what may have been meant
    ({"rome.stepps": 20}, "rome.stepps", "did you mean rome.steps?"),
    ({"romee": {}}, "romee", "did you mean rome?"),
    ({"noise.windows": [5]}, "noise.windows", "did you mean trace.windows?"),
    ({"steps": 20}, "steps", "did you mean rome.steps?"),
    ({"facts.known.min_p": 0.1}, "facts.known.min_p", "did you mean facts.known.min_p_true?"),
    ({"quux": 1}, "quux", "seed, model, facts"),
    ({"report.quux": 1}, "report.quux", "title, example_fact, dpi"),
    (
        {"rome.by_problem": {"fact_forgetting": {}}},
        "fact_forgetting",
        "did you mean rome.by_problem.fact_forcing?",
    ),
    ({"rome.by_problem": {"fact_forcing": {"step": 25}}}, "fact_forcing.step", "fact_forcing.steps?"),
    (
        {"rome.by_problem": {"fact_forcing": {"by_problem": {}}}},
        "fact_forcing.by_problem",
        "rome.by_problem?",
    ),
    # a misspelt key is named, and not the right one that is missing because of it
    ({"rome.steps": MISSING, "rome.step": 20}, "rome.step is no key", "did you mean rome.steps?"),
    # missing keys and sections
    ({"seed": MISSING}, "seed is missing", "whole number"),
    ({"rome": MISSING}, "section rome is missing", "steps, learning_rate"),
    ({"facts.known.rule": MISSING}, "facts.known.rule is missing", "greedy, within or none"),
    ({"noise.sd": MISSING}, "noise.sd is missing", "null"),
    # types
    ({"rome.steps": "20"}, "rome.steps is the text '20'", "without quotes"),
    ({"rome.steps": 2.5}, "rome.steps is 2.5", "whole number"),
    ({"rome.steps": True}, "rome.steps is true", "whole number"),
    ({"rome.steps": None}, "rome.steps is null", "whole number"),
    ({"noise.multiple": True}, "noise.multiple is true", "a number above 0"),
    ({"noise.multiple": "three"}, "noise.multiple is the text 'three'", "a number above 0"),
    ({"model.add_bos": 1}, "model.add_bos is 1", "true or false"),
    ({"model.add_bos": "yes"}, "model.add_bos is the text 'yes'", "true or false"),
    ({"model.revision": 1234567}, "model.revision is 1234567", "in quotes"),
    ({"trace.modules": "mlp"}, "trace.modules is the text 'mlp'", "a list of one or more of mlp"),
    ({"noise": None}, "noise is null", "multiple, sd, samples"),
    ({"noise": [1]}, "noise is a list", "multiple, sd, samples"),
    ({"model.names": "gpt2"}, "model.names is the text 'gpt2'", "module paths"),
    ({"rome.by_problem": None}, "rome.by_problem is null", "or {}"),
    ({"rome.by_problem": {"fact_forcing": 25}}, "rome.by_problem.fact_forcing is 25", "mapping"),
    ({"edit.layers": [0, "4"]}, "edit.layers[1] is the text '4'", "without quotes"),
    ({"trace.windows": [[5]]}, "trace.windows[0] is a list", "whole numbers of layers"),
    # ranges and choices
    ({"seed": -1}, "seed is -1", "0 to 2**63 - 1"),
    ({"seed": 2**63}, "seed is a number of 64 bits", "0 to 2**63 - 1"),
    ({"rome.steps": 0}, "rome.steps is 0", "at least 1"),
    ({"rome.steps": 10**15}, "rome.steps is 10", "whole number of optimization steps"),
    ({"rome.learning_rate": 0}, "rome.learning_rate is 0", "above 0"),
    ({"rome.learning_rate": float("nan")}, "rome.learning_rate is nan", "above 0"),
    ({"rome.learning_rate": float("inf")}, "rome.learning_rate is inf", "above 0"),
    ({"rome.kl_factor": -1}, "rome.kl_factor is -1", "at least 0"),
    ({"rome.key": "means"}, "rome.key is the text 'means'", "did you mean mean?"),
    ({"rome.leave_when": 1}, "rome.leave_when is 1", "below 1"),
    ({"rome.stop_loss": 0}, "rome.stop_loss is 0", "a loss above 0"),
    ({"rome.erasure_loss": "mean"}, "rome.erasure_loss is the text 'mean'", "mean_of_exp or exp_of_mean"),
    ({"edit.reversal_target": "content_word"}, "edit.reversal_target", "did you mean first_content_word?"),
    (
        {"rome.by_problem": {"fact_forcing": {"steps": 0}}},
        "rome.by_problem.fact_forcing.steps is 0",
        "at least 1",
    ),
    ({"facts.count": 0}, "facts.count is 0", "null for all known facts"),
    ({"facts.source": "counterfacts"}, "facts.source", "did you mean counterfact?"),
    ({"facts.known.rule": "exact"}, "facts.known.rule is the text 'exact'", "greedy, within or none"),
    ({"facts.known.min_p_true": 1.5}, "facts.known.min_p_true is 1.5", "below 1"),
    ({"noise.sd": 0}, "noise.sd is 0", "above 0"),
    ({"noise.samples": 0}, "noise.samples is 0", "at least 1"),
    ({"trace.modules": []}, "trace.modules is an empty list", "one or more"),
    ({"trace.modules": ["mlp", "atn"]}, "trace.modules[1] is the text 'atn'", "did you mean attn?"),
    ({"trace.windows": [5, 0]}, "trace.windows[1] is 0", "each at least 1"),
    ({"statistics.temperature": 0}, "statistics.temperature is 0", "above 0"),
    ({"statistics.sequence_length": 1}, "statistics.sequence_length is 1", "at least 2"),
    ({"statistics.text": "dataset:"}, "statistics.text", "dataset:NAME"),
    ({"edit.methods": ["roem"]}, "edit.methods[0] is the text 'roem'", "did you mean rome?"),
    ({"edit.problems": ["error_injektion"]}, "edit.problems[0]", "did you mean error_injection?"),
    ({"edit.layers": "al"}, "edit.layers is the text 'al'", "did you mean all?"),
    ({"edit.layers": [3, -1]}, "edit.layers[1] is -1", "counted from 0"),
    ({"edit.layers": []}, "edit.layers is an empty list", "all, or a list"),
    ({"edit.max_failed_share": 10}, "edit.max_failed_share is 10", "0 to 1"),
    ({"model.dtype": "float23"}, "model.dtype is the text 'float23'", "did you mean float32?"),
    ({"model.device": "gpu"}, "model.device is the text 'gpu'", "cuda"),
    ({"model.name": ""}, "model.name is the text ''", "hub name"),
    ({"model.name": "package:SmolLM2"}, "model.name", "packaged:NAME"),
    ({"model.name": "trained:large"}, "model.name", "trained:tiny"),
    ({"model.names": {"blocks": "h"}}, "model.names.attn is missing", "attention module"),
    ({"report.dpi": 5}, "report.dpi is 5", "50 to 1200"),
    ({"report.title": "two\nlines"}, "report.title", "one line"),
    ({"regressions.scores": ["rewrites"]}, "regressions.scores[0]", "did you mean rewrite?"),
    ({"regressions.confidence": 95}, "regressions.confidence is 95", "such as 0.95"),
    ({"compute.memory": "4 gigs"}, "compute.memory is the text '4 gigs'", '"4GB"'),
    ({"compute.memory": 0}, "compute.memory is 0", "a whole number of bytes"),
    ({"compute.path": "slow"}, "compute.path is the text 'slow'", "fast or plain"),
    ({"compute.threads": 0}, "compute.threads is 0", "auto, or a whole number"),
    ({"compute.engine": "rays"}, "compute.engine is the text 'rays'", "did you mean ray?"),
    ({"compute.address": "head:6379"}, "compute.address is the text 'head:6379'", "auto, local or ray://HOST:PORT"),
    ({"compute.address": "ray://head"}, "compute.address is the text 'ray://head'", "ray://HOST:PORT"),
    ({"compute.address": "ray://head:0"}, "compute.address is the text 'ray://head:0'", "ray://HOST:PORT"),
    ({"compute.address": "ray://head:99999"}, "compute.address", "ray://HOST:PORT"),
    ({"compute.address": None}, "compute.address is null", "auto, local"),
    ({"compute.worker_gpus": 0}, "compute.worker_gpus is 0", "above 0"),
    ({"compute.worker_gpus": -1.0}, "compute.worker_gpus is -1", "above 0"),
    ({"compute.worker_gpus": 1.5}, "compute.worker_gpus is 1.5", "or a whole number of GPUs"),
    ({"compute.worker_gpus": "1"}, "compute.worker_gpus is the text '1'", "without quotes"),
    ({"compute.worker_memory": "auto"}, "compute.worker_memory is the text 'auto'", "null, a whole number of bytes"),
    ({"compute.worker_memory": 0}, "compute.worker_memory is 0", '"16GB"'),
    # paths that leave the project by a detour
    ({"facts.path": "../facts"}, "facts.path is the text '../facts'", "without .."),
    ({"facts.path": "data/../../facts"}, "facts.path", "without .."),
    ({"facts.path": "~/facts"}, "facts.path is the text '~/facts'", "absolute"),
    ({"facts.path": "data/\0facts"}, "facts.path", "inside the project"),
    ({"model.name": "../model"}, "model.name is the text '../model'", "without .."),
    ({"statistics.text": "../text.txt"}, "statistics.text is the text '../text.txt'", "inside the project"),
    # keys that are each fine and contradict each other
    ({"edit.problems": ["fact_erasure"] * 2}, "edit.problems holds fact_erasure twice", "once"),
    ({"edit.layers": [3, 0, 3]}, "edit.layers holds 3 twice", "once"),
    ({"edit.layers_by_method": {"memit": [1, 1]}}, "edit.layers_by_method.memit holds 1 twice", "once"),
    ({"edit.layers_by_method": {"memit": "all"}}, "edit.layers_by_method.memit is the text 'all'", "a list of diff"),
    ({"edit.layers_by_method": {"memi": [1]}}, "edit.layers_by_method.memi is no key", "by_method.memit?"),
    ({"edit.layers_by_method": [1]}, "edit.layers_by_method is a list", "a mapping of methods to lists"),
    ({"trace.windows": [5, 5]}, "trace.windows holds 5 twice", "once"),
    ({"regressions.scores": ["rewrite", "rewrite"]}, "regressions.scores holds rewrite twice", "once"),
    ({"model.revision": "main"}, "model.revision is 'main'", "null for packaged:"),
    ({"model.device": "cpu", "model.device_map": "auto"}, "model.device is cpu", "must be auto"),
    ({"model.device": "cuda:1", "compute.engine": "ray"}, "model.device is cuda:1", "where compute.engine is ray"),
    ({"statistics.tokens": 10}, "statistics.tokens is 10", "at least statistics.sequence_length, 64"),
    ({"facts.max_neighborhood": 0}, "facts.max_neighborhood is 0", "raise it"),
    ({"facts.max_paraphrases": 0}, "facts.max_paraphrases is 0", "raise it"),
    (
        {"facts.max_neighborhood": 0, "regressions.scores": ["overall"]},
        "regressions.scores holds overall",
        "needs neighborhood",
    ),
    ({"regressions.bootstrap_samples": 20}, "regressions.bootstrap_samples is 20", "at least 40"),
]

BAD_FILES: list[tuple[str, bytes, str, str]] = [
    ("empty", b"", "found null", "must be a mapping of the sections seed, model"),
    ("list", b"- seed: 0\n", "found a list", "must be a mapping of the sections"),
    ("bare text", b"seed\n", "found the text 'seed'", "must be a mapping"),
    ("duplicate key", b"seed: 0\nmodel: {}\nseed: 1\n", "seed is there twice", "keep one"),
    ("nested duplicate", b"noise:\n  sd: 1.0\n  sd: 2.0\n", "sd is there twice (line 3", "keep one"),
    ("open bracket", b"trace:\n  windows: [5\n", "line 3, column 1", "key: value"),
    ("tab", b"noise:\n\tsd: null\n", "line 2, column 1", "indented by spaces"),
    ("wrong indent", b"seed: 0\n  noise: 1\n", "line 2", "key: value"),
    ("not UTF-8", b"seed: 0 # caf\xe9\n", "byte 13 is not UTF-8", "save the file as UTF-8"),
    ("NUL byte", b"seed: 0\0\n", "is not YAML", "presets/default.yaml"),
    ("Python object", b"seed: !!python/object/apply:os.getcwd []\n", "python", "key: value"),
    ("impossible date", b"seed: 2026-13-45\n", "not YAML as meant", "presets/default.yaml"),
    ("endless brackets", b"seed: " + b"[" * 490, "not YAML", "presets/default.yaml"),
    ("list as key", b"? [a, b]\n: 1\n", "is no key", "seed, model"),
    ("number as key", b"3: 4\n", "3 is no key", "seed, model"),
]


@pytest.mark.parametrize(("changes", "key", "hint"), BAD_VALUES, ids=lambda value: str(value)[:60])
def test_bad_value_is_told_with_key_and_hint(tmp_path: Path, changes: dict[str, Any], key: str, hint: str) -> None:
    told = refusal(tmp_path, changed(changes))
    assert key in told
    assert hint in told


@pytest.mark.parametrize(
    ("content", "found", "hint"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES]
)
def test_bad_file_is_told_with_place_and_hint(tmp_path: Path, content: bytes, found: str, hint: str) -> None:
    told = refusal(tmp_path, content)
    assert found in told
    assert hint in told


def test_a_file_that_is_not_there_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file; copy presets/default\.yaml"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="must be a readable text file"):
        load(tmp_path)


def test_a_bomb_of_aliases_is_told_briefly(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert "a0 is no key" in refusal(tmp_path, "\n".join(lines).encode())


def test_params_are_frozen() -> None:
    params = load(ROOT / "presets/default.yaml")
    with pytest.raises(ValidationError):
        params.noise.samples = 3  # type: ignore[misc]


def test_whole_numbers_do_for_fractions_and_yaml_1_2_numbers_are_numbers(tmp_path: Path) -> None:
    text = (ROOT / "presets/default.yaml").read_text(encoding="utf-8")
    text = text.replace("multiple: 3.0", "multiple: 3").replace("ridge: 0.0", "ridge: 1e-4")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    params = load(tmp_path / "params.yaml")
    assert (params.noise.multiple, params.statistics.ridge) == (3.0, 1e-4)


def test_absolute_paths_are_taken_to_be_meant() -> None:
    whole = changed({"facts.path": "/srv/facts", "statistics.text": "/srv/text.txt", "model.name": "/srv/model"})
    params = Params.model_validate(whole)
    assert (params.facts.path, params.statistics.text) == ("/srv/facts", "/srv/text.txt")


def test_overrides_of_a_problem_that_is_not_edited_are_kept() -> None:
    whole = changed({"edit.problems": ["fact_erasure"], "rome.by_problem": {"fact_forcing": {"leave_when": None}}})
    by_problem = with_methods(SETTINGS, ["rome"]).model_validate(whole).model_dump()["rome"]["by_problem"]
    assert by_problem["fact_forcing"] == {"leave_when": None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"edit.layers": [0, 29, 30]}, "edit.layers holds 30 but must stay within 0 to 29"),
        ({"edit.layers_by_method": {"kn": [30]}}, "edit.layers_by_method.kn holds 30 but must stay within 0 to 29"),
        ({"trace.windows": [5, 31]}, "trace.windows holds 31 but must hold widths of 1 to 30"),
    ],
)
def test_layers_and_windows_beyond_the_model(changes: dict[str, Any], told: str) -> None:
    params = Params.model_validate(changed(changes))
    check_against_model(params, 31)
    with pytest.raises(UserError, match=told):
        check_against_model(params, 30)


def test_layer_list() -> None:
    assert Params.model_validate(tree()).edit.layer_list(3) == [0, 1, 2]
    assert Params.model_validate(changed({"edit.layers": [2, 0]})).edit.layer_list(3) == [0, 2]
    several = changed({"edit.methods": ["memit", "kn"], "edit.layers": [0, 3], "edit.layers_by_method": {"kn": [4, 1]}})
    params = Params.model_validate(several)
    assert params.edit.layer_list(5, "memit") == [0, 3]
    assert params.edit.layer_list(5, "kn") == [1, 4]
    assert params.edit.layer_list(5) == [0, 1, 3, 4]  # those whose second moments are needed
    assert params.with_layers([2]).edit.layer_list(5, "kn") == [2]


@pytest.mark.parametrize(
    ("memory", "bytes_"),
    [
        ("auto", None),
        (1, 1),
        ("4GB", 4 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("2kB", 2000),
    ],
)
def test_memory(memory: int | str, bytes_: int | None) -> None:
    assert parse_memory(memory) == bytes_
    assert Params.model_validate(changed({"compute.memory": memory})).compute.memory_bytes == bytes_


def test_settings_of_a_cluster() -> None:
    for address in ("auto", "local", "ray://head.example.org:10001", "ray://10.0.0.1:10001", "ray://[::1]:10001"):
        assert Params.model_validate(changed({"compute.address": address})).compute.address == address
    for gpus in (0.25, 1, 2.0):
        assert Params.model_validate(changed({"compute.worker_gpus": gpus})).compute.worker_gpus == gpus
    for memory, size in ((None, None), (10**9, 10**9), ("16GB", 16 * 10**9)):
        assert Params.model_validate(changed({"compute.worker_memory": memory})).compute.worker_bytes == size


def test_the_command_checks_a_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("seed: [\n", encoding="utf-8")
    runs = [
        subprocess.run([sys.executable, "-m", "stages.params", str(path)], cwd=ROOT, capture_output=True, text=True)
        for path in (ROOT / "presets/default.yaml", bad)
    ]
    assert [run.returncode for run in runs] == [0, 2]
    assert runs[0].stderr == ""
    assert runs[1].stderr.startswith(f"error: {bad}: line 2")
    assert runs[1].stderr.count("\n") == 1
