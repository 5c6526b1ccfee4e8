"""What several test modules share. Models of a session are read-only: who edits one puts it back bit for bit."""

import signal
from pathlib import Path

import pytest
import torch

from pipeline.compute import fetch
from pipeline.lm.cache import VARIABLE, place
from tests.stages.clones import ROOT, clone, smoke

__all__ = ["ROOT", "clone", "smoke", "tiny_folder"]  # the fixtures are pytest's to find

TINY_FACTS = ROOT / "data" / "facts" / "tiny"
TINY_MODEL = ROOT / "tests" / "data" / "tiny_model"
TINY_SEED = 0

# The tests' products are small: a second thread gains nothing, and waits for long whenever its core is not free.
torch.set_num_threads(1)

# A shell starts what runs in the background with Ctrl-C ignored, which every child inherits: a test that sends one to a
# stage would wait for an end that no one was asked for. Handled here, children begin with the system's default.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small model that knows the facts of data/facts/tiny, trained on this machine.

    It is another one on another machine: for tests of the training, and of what `make repro PRESET=smoke` gives.
    TINY_MODEL is the same everywhere. Training takes half a minute, so pytest's cache keeps the model until what it
    depends on changes; the instructions that torch computes with are part of that.
    """
    cache = request.config.cache
    models = cache.mkdir("models") if cache else tmp_path_factory.mktemp("models")
    capability = torch.backends.cpu.get_cpu_capability().replace(" ", "-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(models / capability))
        return Path(place(fetch.ensure("trained:tiny", TINY_SEED, TINY_FACTS)))
