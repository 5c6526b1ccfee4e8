"""Models of the hub: those whose files are here are loaded without it, and a hub that does not answer is told soon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.lm import hub
from pipeline.lm.load import load
from tests.conftest import ROOT
from tests.lm.families import random_model

NAME, COMMIT = "nobody/small", "a" * 40
SOON = 10.0  # seconds


class Hub:
    """Counts who calls at a port of this machine, and hangs up."""

    def __init__(self) -> None:
        self.calls = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._hang_up, daemon=True).start()

    def _hang_up(self) -> None:
        while True:
            try:
                caller, _ = self.socket.accept()
            except OSError:  # it is closed
                return
            self.calls += 1
            caller.close()


@pytest.fixture
def hung_up() -> Iterator[Hub]:
    one = Hub()
    yield one
    one.socket.shutdown(socket.SHUT_RDWR)
    one.socket.close()


def cache(home: Path, shards: bool = False) -> Path:
    """A Hugging Face cache that has a small model, as a download leaves it; the model's folder there."""
    repo = home / "hub" / f"models--{NAME.replace('/', '--')}"
    folder = repo / "snapshots" / COMMIT
    lm = random_model("llama", torch.float32)
    lm.model.save_pretrained(folder, **({"max_shard_size": "40KB"} if shards else {}))
    lm.tokenizer.save_pretrained(folder)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return folder


LOAD = """
import sys, time
import transformers
from pipeline.errors import UserError
from pipeline.lm.load import load

start = time.monotonic()
try:
    lm = load(sys.argv[1], name=sys.argv[1], device="cpu")
    print(lm.describe()["source"], lm.fingerprint)
except UserError as error:
    print(error)
print(time.monotonic() - start)
"""


def loaded(home: Path, endpoint: str) -> tuple[str, float]:
    """What a process with this cache and this hub says of the model, and the seconds that it took."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, NAME], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    told, seconds = done.stdout.splitlines()
    return told, float(seconds)


def test_a_hub_that_refuses_is_told_after_one_try(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nothing listens there
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        told, seconds = loaded(tmp_path, address)
    assert seconds < SOON
    assert told.startswith(f"model.name {NAME!r} is no folder here and, as a hub name, not in the cache of the hub's")
    assert f" ({tmp_path / 'hub'}), " in told
    assert f"the hub {address} can't be reached (" in told
    assert "refused" in told


def test_a_hub_that_hangs_up_is_asked_once(tmp_path: Path, hung_up: Hub) -> None:
    told, seconds = loaded(tmp_path, hung_up.address)
    assert seconds < SOON
    assert f"the hub {hung_up.address} can't be reached (" in told
    assert hung_up.calls == 1


def test_a_hub_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"can't be reached \("):
            hub.knock(NAME)
        assert time.monotonic() - start < 5


def test_what_is_here_is_loaded_without_a_connection(tmp_path: Path, hung_up: Hub) -> None:
    folder = cache(tmp_path)
    told, _ = loaded(tmp_path, hung_up.address)
    assert told == f"{NAME} {load(str(folder), device='cpu').fingerprint}"
    assert hung_up.calls == 0


def test_a_download_that_was_cut_off_is_not_taken_for_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cache(tmp_path, shards=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub.copy_here(NAME, None, False) == folder
    assert hub.copy_here(NAME, "main", False) == folder
    assert hub.copy_here(NAME, COMMIT, False) == folder
    assert hub.copy_here(NAME, "b" * 40, False) is None
    assert hub.copy_here("nobody/other", None, False) is None
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.unlink()
    assert hub.copy_here(NAME, None, False) is None
    shard.write_bytes(content)
    assert hub.copy_here(NAME, None, False) == folder
    (folder / "tokenizer.json").unlink()
    assert hub.copy_here(NAME, None, False) is None
