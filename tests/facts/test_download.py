"""`facts.path: download`: a published file is fetched once, whole or not at all, and stays what it was at first."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.request import OpenerDirector, Request, build_opener

import pytest
from pydantic import ValidationError

from pipeline.compute import inputs
from pipeline.edit.methods import load
from pipeline.errors import UserError
from pipeline.facts import download
from pipeline.facts.download import fetch, secure
from pipeline.settings.fields import DOWNLOADED
from pipeline.settings.params import Params
from tests.conftest import ROOT
from tests.facts.broken import counterfact

CONTENT = json.dumps([counterfact(i) for i in range(5)]).encode()
NOTE = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}


class Web(ThreadingHTTPServer):
    """Gives `content` at every path but a few that name a misfortune; counts who asks for what."""

    content = CONTENT
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: list[str] = []

    def address(self, name: str = "counterfact.json") -> str:
        return f"http://127.0.0.1:{self.server_port}/dsets/{name}"


class _Answer(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        content = self.server.content
        if name == "gone.json":
            return self.send_error(404)
        if name in ("to-http.json", "to-file.json"):
            self.send_response(302)
            self.send_header("Location", self.server.address() if name == "to-http.json" else "file:///etc/hostname")
            return self.end_headers()
        self.send_response(200)
        if name == "chunks-cut.json":
            self.send_header("Transfer-Encoding", "chunked")
            content = b"%x\r\n" % len(content) + content[:-20]
        elif name != "of-unknown-length.json":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:-20] if name in ("cut.json", "stalled.json") else content)
        if name == "stalled.json":
            self.wfile.flush()
            time.sleep(2)
        return None

    def log_message(self, *told: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def opener() -> OpenerDirector:
    """That of users takes https alone; here, by the same rule for where a server sends it on to, http."""
    return build_opener(download.HttpsOnly)


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_file_is_fetched_once_and_written_down(
    web: Web, opener: OpenerDirector, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = fetch(web.address(), tmp_path / "new", opener)
    assert path == tmp_path / "new" / "counterfact.json"
    assert path.read_bytes() == CONTENT
    assert json.loads((tmp_path / "new" / "counterfact.origin.json").read_text()) == {"address": web.address(), **NOTE}
    assert there(tmp_path / "new") == ["counterfact.json", "counterfact.origin.json"]
    told = capfd.readouterr().err
    assert "fetching counterfact.json: 1/1 MB" in told
    assert f"{len(CONTENT)} bytes with SHA-256 {NOTE['sha256']}" in told
    assert fetch(web.address(), tmp_path / "new", opener) == path
    assert web.asked == ["counterfact.json"]
    assert capfd.readouterr().err == ""


def test_a_file_whose_length_the_server_does_not_say(web: Web, opener: OpenerDirector, tmp_path: Path) -> None:
    assert fetch(web.address("of-unknown-length.json"), tmp_path, opener).read_bytes() == CONTENT


def test_long_files_come_in_pieces_with_a_line_for_each_tenth(
    web: Web, opener: OpenerDirector, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    web.content = json.dumps(["x" * 1000] * 12_500).encode()
    assert fetch(web.address(), tmp_path, opener).read_bytes() == web.content
    told = capfd.readouterr().err
    assert "fetching counterfact.json: 13 MB to do" in told
    assert "fetching counterfact.json: 13/13 MB" in told
    assert 8 <= told.count("/13 MB") <= 14


@pytest.mark.parametrize("spoilt", [CONTENT[:-1], CONTENT.replace(b"Loire 3", b"Loire 4"), b""])
def test_a_file_that_changed_is_refused(web: Web, opener: OpenerDirector, tmp_path: Path, spoilt: bytes) -> None:
    path = fetch(web.address(), tmp_path, opener)
    path.write_bytes(spoilt)
    with pytest.raises(UserError) as error:
        fetch(web.address(), tmp_path, opener)
    assert f"{path} has {len(spoilt)} bytes with SHA-256 {hashlib.sha256(spoilt).hexdigest()}, but" in str(error.value)
    assert f"were fetched from {web.address()}; delete it and run `dvc repro`" in str(error.value)
    assert web.asked == ["counterfact.json"]
    path.unlink()
    assert fetch(web.address(), tmp_path, opener).read_bytes() == CONTENT


def test_another_file_at_the_address_is_not_taken_for_the_first(
    web: Web, opener: OpenerDirector, tmp_path: Path
) -> None:
    path = fetch(web.address(), tmp_path, opener)
    path.unlink()
    web.content = json.dumps([counterfact(i) for i in range(6)]).encode()
    with pytest.raises(UserError, match=rf"gives \d+ bytes .* but gave {len(CONTENT)} bytes .* at first, by .*origin"):
        fetch(web.address(), tmp_path, opener)
    assert there(tmp_path) == ["counterfact.origin.json"]
    (tmp_path / "counterfact.origin.json").unlink()
    assert fetch(web.address(), tmp_path, opener).read_bytes() == web.content


def test_a_file_of_which_nothing_was_written_down_is_fetched_anew(
    web: Web, opener: OpenerDirector, tmp_path: Path
) -> None:
    (tmp_path / "counterfact.json").write_bytes(CONTENT[:100])
    assert fetch(web.address(), tmp_path, opener).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cut.json", f"it broke off after {len(CONTENT) - 20} of {len(CONTENT)} bytes"),
        ("chunks-cut.json", "IncompleteRead"),
        ("stalled.json", "timed out"),
        ("gone.json", "it answers 404 Not Found"),
        ("to-http.json", "it sends on to 'http://127.0.0.1:"),
        ("to-file.json", "file:///etc/hostname"),
    ],
)
def test_what_can_t_be_had_whole_is_not_had(
    web: Web, opener: OpenerDirector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.5)
    with pytest.raises(UserError) as error:
        fetch(web.address(name), tmp_path, opener)
    assert str(error.value).startswith(f"facts.path is download, but {web.address(name)} can't be fetched (")
    assert why in str(error.value)
    assert str(error.value).endswith("; mend the connection, or fetch the file elsewhere and name it in facts.path")
    assert str(error.value).isprintable()
    assert there(tmp_path) == []
    assert web.asked == [name]  # where it was sent on to, it did not ask


@pytest.mark.parametrize("content", [b"<html>Log in first</html>", b'{"message": "moved"}', b"", b"[1", b"\xff\xfe"])
def test_a_page_in_its_place_is_no_fact_file(web: Web, opener: OpenerDirector, tmp_path: Path, content: bytes) -> None:
    web.content = content
    with pytest.raises(UserError, match="and is no JSON list of records"):
        fetch(web.address(), tmp_path, opener)
    assert there(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "limit", "why"),
    [
        ("counterfact.json", {"MOST": 1000}, f"it has {len(CONTENT)} bytes, of which at most 1000 are taken"),
        ("of-unknown-length.json", {"MOST": 1000}, "it has more than 1000 bytes"),
        ("counterfact.json", {"LONGEST": -1.0}, "bytes came within -1 s"),
    ],
)
def test_a_file_too_large_or_too_slow(
    web: Web, opener: OpenerDirector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
    limit: dict[str, float], why: str,
) -> None:  # fmt: skip
    for constant, value in limit.items():
        monkeypatch.setattr(download, constant, value)
    with pytest.raises(UserError, match=why):
        fetch(web.address(name), tmp_path, opener)
    assert there(tmp_path) == []


def test_users_get_https_alone(web: Web, tmp_path: Path) -> None:
    assert all(address.startswith("https://") for address in download.PUBLISHED.values())
    assert set(download.PUBLISHED) == set(DOWNLOADED)
    with pytest.raises(UserError, match="unknown url type: http"):
        fetch(web.address(), tmp_path, secure())
    note = tmp_path / "note.json"
    note.write_bytes(CONTENT)
    with pytest.raises(UserError, match="unknown url type: file"):
        fetch(note.as_uri(), tmp_path / "new", secure())
    assert web.asked == []
    asked, headers = Request("https://a.example/x"), HTTPMessage()
    sent = download.HttpsOnly().redirect_request(asked, BytesIO(), 302, "", headers, "https://b.example/x")
    assert sent is not None
    assert sent.full_url == "https://b.example/x"


def test_offline_it_says_what_to_do(web: Web, tmp_path: Path) -> None:
    """Nothing speaks TLS at a port of the tests' server, and nothing at all at that of one that was closed."""
    with pytest.raises(UserError, match=r"SSL.*name it in facts\.path"):
        fetch(web.address().replace("http:", "https:"), tmp_path, secure())
    other = Web()
    other.server_close()
    with pytest.raises(UserError, match=r"refused.*name it in facts\.path"):
        fetch(other.address().replace("http:", "https:"), tmp_path, secure())


@pytest.fixture
def settings(web: Web, opener: OpenerDirector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The preset, with the tests' server in the place of the published one."""
    monkeypatch.setenv(download.VARIABLE, str(tmp_path / "facts"))
    monkeypatch.setitem(download.PUBLISHED, "counterfact", web.address())
    monkeypatch.setattr(download, "secure", lambda: opener)
    monkeypatch.chdir(tmp_path)
    return load(ROOT / "presets" / "counterfact.yaml")


def test_stage_params_fetches_and_other_stages_find(settings: Params, web: Web) -> None:
    with pytest.raises(UserError, match=r"counterfact\.json is not there.*dvc repro -f params.*LOCALIZE_EDIT_FACTS"):
        inputs.candidates(settings)
    assert web.asked == []
    assert inputs.surroundings(settings, 1)["facts"] == {"sha256": NOTE["sha256"]}
    assert inputs.surroundings(settings, 1)["facts"] == {"sha256": NOTE["sha256"]}
    assert web.asked == ["counterfact.json"]
    facts = inputs.candidates(settings).facts
    assert [fact.fact_id for fact in facts] == [f"counterfact-{i}" for i in range(5)]
    few = settings.model_copy(update={"facts": settings.facts.model_copy(update={"records": 3})})
    assert inputs.candidates(few).facts == facts[:3]
    path = Path("facts/counterfact.json")
    path.write_bytes(CONTENT[:-1] + b" ]")
    for look in (inputs.candidates, lambda params: inputs.surroundings(params, 1)):
        with pytest.raises(UserError, match=r"were fetched from .*; delete it and run"):
            look(settings)


@pytest.mark.parametrize(
    ("preset", "records"), [("counterfact", 2000), ("paper-gptj", 2000), ("paper-gpt2-xl", 2000), ("cluster", None)]
)
def test_presets_on_published_facts_fetch_them(preset: str, records: int | None) -> None:
    facts = load(ROOT / "presets" / f"{preset}.yaml").facts
    assert (facts.source, facts.path, facts.records) == ("counterfact", "download", records)
    assert (facts.known.rule, facts.known.within_tokens) == ("within", 36)  # of Hase et al. 2023


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": "counterfact_flat"}, "facts.path is download but must name a folder or file where facts.source is"),
        ({"source": "embedded", "records": None}, "is given out to be fetched is counterfact, known_1000 or zsre"),
        ({"source": "embedded", "path": "data/facts/tiny"}, "facts.records is 2000 but must be null where"),
        ({"records": 0}, "records"),
    ],
)
def test_settings_that_do_not_go_with_it(change: dict[str, object], told: str) -> None:
    tree = load(ROOT / "presets" / "counterfact.yaml").model_dump()
    with pytest.raises(ValidationError, match=told):
        Params.model_validate(tree | {"facts": tree["facts"] | change})


def test_what_facts_are_read_from_is_known_by_its_content(tmp_path: Path) -> None:
    params = load(ROOT / "presets" / "smoke.yaml")

    def seen(path: Path) -> str | None:
        facts = params.facts.model_copy(update={"path": str(path)})
        found: str | None = inputs.surroundings(params.model_copy(update={"facts": facts}), 1)["facts"]["sha256"]
        return found

    table = tmp_path / "facts.tsv"
    assert seen(table) is None
    table.write_text("a\tb\n")
    of_file, of_folder = seen(table), seen(tmp_path)
    assert of_file == hashlib.sha256(b"a\tb\n").hexdigest()
    (tmp_path / "SOURCE.md").write_text("Where it is from.")
    assert seen(tmp_path) == of_folder
    table.write_text("a\tc\n")
    assert (seen(table) == of_file, seen(tmp_path) == of_folder) == (False, False)
