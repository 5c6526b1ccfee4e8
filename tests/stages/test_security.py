"""What comes from elsewhere is data and never code: no unsafe calls in our code, no code of a model folder is run.

Elsewhere: weights whose unpickling would do harm are in test_models.py, escaping in the report in test_report.py, paths
that leave the project in test_params.py.
"""

from __future__ import annotations

import ast
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.edit.methods import load as load_params
from pipeline.errors import UserError
from pipeline.lm.load import load
from pipeline.settings.sections import ModelParams
from tests.conftest import ROOT
from tests.lm.families import random_model, small_tokenizer

SOURCES = sorted(path for folder in ("pipeline", "stages", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# Modules whose reading runs code that the file holds, or that put text through a shell.
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
    "commands",
}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.hub.load",
}
# Calls that are fine only with this argument, or only without it.
NEEDED = {"torch.load": ("weights_only", True)}
REFUSED = {"shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True}
SAFE_YAML = {"safe", "rt"}


def dotted(node: ast.expr) -> str:
    """The name that is called, such as os.system; empty for anything that is not a name."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(source: str) -> Iterator[str]:
    """What in a module's source must not be there, with its line."""
    tree = ast.parse(source)
    # import os as o; from os import system as s: what a name stands for
    meant: dict[str, str] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            whole = f"{module}.{alias.name}".strip(".")
            meant[alias.asname or alias.name] = whole
            if MODULES & {whole.partition(".")[0], module.partition(".")[0]}:
                yield f"line {node.lineno}: import of {whole}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = dotted(node.func).partition(".")
        called = f"{meant.get(first, first)}.{rest}".strip(".")
        arguments = {keyword.arg: getattr(keyword.value, "value", ...) for keyword in node.keywords}
        if called in CALLS:
            yield f"line {node.lineno}: {called}"
        if called in NEEDED and arguments.get(NEEDED[called][0]) is not NEEDED[called][1]:
            yield f"line {node.lineno}: {called} without {NEEDED[called][0]}"
        if called == "yaml.load" and not any(word in ast.dump(node) for word in ("SafeLoader", "CSafeLoader")):
            yield f"line {node.lineno}: yaml.load without SafeLoader"
        if called.rpartition(".")[2] == "YAML" and arguments.get("typ", "rt") not in SAFE_YAML:
            yield f"line {node.lineno}: YAML of typ {arguments['typ']}"
        for name, value in REFUSED.items():
            if arguments.get(name) is value:
                yield f"line {node.lineno}: {called or 'a call'} with {name}={value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path: Path) -> None:
    assert list(unsafe(path.read_text("utf-8"))) == []


def test_all_code_is_looked_at() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert {"pipeline/lm/load.py", "pipeline/edit/rome.py", "stages/_run.py", "benchmarks/run.py"} <= names
    assert len(names) > 35


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import joblib.externals",
        "from dill import load",
        "eval('1')",
        "exec(text)",
        "import os; os.system('ls')",
        "from os import system as s; s('ls')",
        "import os as o; o.popen('ls')",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import torch; torch.load(path)",
        "from torch import load; load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import torch; torch.load(path, weights_only=wanted)",
        "import numpy as np; np.load(path, allow_pickle=True)",
        "import pandas as pd; pd.read_pickle(path)",
        "import yaml; yaml.load(text)",
        "import yaml; yaml.load(text, Loader=yaml.Loader)",
        "import yaml; yaml.unsafe_load(text)",
        "from ruamel.yaml import YAML; YAML(typ='unsafe')",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_unsafe_code_would_be_noticed(line: str) -> None:
    assert list(unsafe(line))


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "import torch; torch.load(path, weights_only=True)",
        "import subprocess; subprocess.run(['ls'])",
        "re.compile('x')",
        "from ruamel.yaml import YAML; YAML(typ='safe', pure=True)",
        "'pickle'",
        "settings.allow_pickle",
        "import yaml; yaml.load(text, Loader=yaml.SafeLoader)",
    ],
)
def test_safe_code_is_left_alone(line: str) -> None:
    assert list(unsafe(line)) == []


# Code in a model folder

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "harmful"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL_MAP = {"AutoConfig": "harm.Config", "AutoModelForCausalLM": "harm.Model"}
TOKENIZER_MAP = {"AutoTokenizer": ["harm.Tokenizer", "harm.Tokenizer"]}


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that the folder's code would make."""
    return tmp_path / "mark"


@pytest.fixture
def folder(tmp_path: Path, mark: Path) -> Path:
    folder = tmp_path / "model"
    random_model("llama", torch.float32).model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    (folder / "harm.py").write_text(CODE.format(mark=str(mark)))
    return folder


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | keys))


def settings(folder: Path, **changes: Any) -> ModelParams:
    smoke = load_params(ROOT / "presets" / "smoke.yaml").model.model_dump()
    return ModelParams.model_validate({**smoke, "name": str(folder), "device": "cpu", **changes})


def test_the_code_would_do_harm(folder: Path, mark: Path) -> None:
    runpy.run_path(str(folder / "harm.py"))
    assert mark.exists()


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("place", ["config.json", "both"])
def test_a_model_that_needs_its_own_code_is_refused_and_the_code_not_run(
    folder: Path, mark: Path, place: str, allow_pickle: bool
) -> None:
    change(folder / "config.json", model_type="harmful", auto_map=MODEL_MAP, architectures=["Model"])
    if place == "both":
        change(folder / "tokenizer_config.json", auto_map=TOKENIZER_MAP, tokenizer_class="Tokenizer")
    with pytest.raises(UserError) as error:
        load(str(folder), allow_pickle=allow_pickle)
    told = str(error.value)
    assert str(folder) in told
    assert "\n" not in told
    assert "model.trust_remote_code" in told
    assert not mark.exists()


def test_code_beside_a_model_that_does_not_need_it_is_not_run(folder: Path, mark: Path) -> None:
    change(folder / "config.json", auto_map=MODEL_MAP)
    change(folder / "tokenizer_config.json", auto_map=TOKENIZER_MAP)
    (folder / "generation_config.json").write_text(json.dumps({"custom_generate": "harm.py"}))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(mark=str(mark)))
    assert load(str(folder)).describe()["family"] == "llama"
    assert not mark.exists()


# Names that become file names


@pytest.mark.parametrize("words", [["--method", "../../x"], ["--problem", "../x"], ["--problem", "x; touch harm"]])
def test_the_edit_stage_takes_known_names_only(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"--method": "rome", "--problem": "fact_erasure"} | {words[0]: words[1]}
    monkeypatch.setattr(sys, "argv", ["edit", *(word for pair in asked.items() for word in pair)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("stages.edit", run_name="__main__")
    assert ended.value.code == 2
    assert f"argument {words[0]}: invalid choice" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
