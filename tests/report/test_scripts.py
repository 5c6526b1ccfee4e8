"""The page's scripts: the vendored ones are those of the registry, and nothing else can run or leave its tag."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from pipeline.disk import digest
from pipeline.errors import UserError
from pipeline.report.scripts import FOLDER, SCRIPTS, policy, safe_json, scripts
from tests.report.made import Made, Page

VENDOR = FOLDER / "vendor"


def test_the_vendored_files_are_those_of_the_list() -> None:
    lines = (VENDOR / "SHA256SUMS").read_text("utf-8").splitlines()
    told = {name: found for found, name in map(str.split, lines)}
    assert {name: digest(VENDOR / name) for name in told} == told
    assert {path.name for path in VENDOR.iterdir()} == {*told, "SHA256SUMS", "README.md"}
    assert {Path(name).name for name in SCRIPTS if name.startswith("vendor/")} == {"d3.min.js", "plot.umd.min.js"}
    for name in ("d3@7.9.0", "@observablehq/plot@0.6.17"):
        assert name in (VENDOR / "README.md").read_text("utf-8")
    for name, version in (("d3.min.js", "v7.9.0"), ("plot.umd.min.js", "v0.6.17")):
        assert version in (VENDOR / name).read_text("utf-8")[:100]


def test_the_policy_lets_these_scripts_run_and_no_other(made: Made) -> None:
    page = Page(made.page)
    told = next(tag["content"] for name, tag in page.tags if name == "meta" and "http-equiv" in tag)
    assert told == policy(scripts())
    run = [code for name, code in page.scripts if name is None]
    sums = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in run]
    assert re.findall(r"'sha256-([^']+)'", told or "") == sums
    assert len(sums) == len(SCRIPTS)
    assert (told or "").startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in (told or "").split("script-src")[1].split(";")[0]
    assert "eval" not in (told or "")


def test_json_in_the_page_cannot_close_its_tag() -> None:
    value = {"</script><!--": "<script>\u2028\u2029&amp;", "plain": ["é", 1.5, None]}
    text = safe_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        safe_json(float("nan"))


def test_a_script_that_could_end_its_tag_is_refused(tmp_path: Path) -> None:
    for code in ("let a = '</SCRIPT>';", "a\r\n", "<!-- a"):
        (tmp_path / "bad.js").write_bytes(code.encode())
        with pytest.raises(UserError, match=r"bad\.js: holds a carriage return, '</script' or '<!--'"):
            scripts(tmp_path, ["bad.js"])


def test_the_house_s_own_scripts_are_short_and_say_what_they_are_for() -> None:
    for path in (FOLDER / "scripts").glob("*.js"):
        text = path.read_text("utf-8")
        assert text.count("\n") < 400
        assert text.startswith('"use strict";\n// '), path
    for path in (FOLDER / "templates").iterdir():
        assert path.read_text("utf-8").count("\n") < 400, path
