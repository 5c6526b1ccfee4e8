"""The Ray engine on a real cluster of this machine: the same bytes as the local engine, and nothing lost by a kill."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from pipeline.compute import engine
from pipeline.compute.edit_job import EditJob
from pipeline.compute.store import Store
from pipeline.compute.work import Job
from pipeline.edit.methods import METHODS
from pipeline.errors import UserError
from pipeline.facts.fact import Fact
from tests.compute.marks import ROOT, Marks, settings
from tests.lm.families import random_model

# Ray reads these when it is imported. A token of the tests' own: else Ray would keep one in the user's home.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
pytest.importorskip("ray", reason="the Ray engine needs Ray: pip install -e '.[ray]'")
ray_engine = import_module("pipeline.compute.ray_engine")

CREW = (1, 1)  # of the local engine: one worker with one thread
WAIT = 300.0  # seconds for what takes ten at most on a machine with nothing else to do


def files(folder: Path) -> dict[str, int]:
    """Every file of a store, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster with two CPUs, started as the README says, and RAY_ADDRESS its address; the one for clients."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a short path: that of a socket has at most 107 bytes
    port, client, agent = free_ports(3)
    command = Path(sys.executable).parent / "ray"
    words = ["start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", f"--port={port}", f"--temp-dir={folder}"]
    words += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    words += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--object-store-memory=100000000"]
    with subprocess.Popen(
        [command, *words],
        env=os.environ
        | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": f"{WAIT:.0f}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as head:
        try:
            deadline = time.monotonic() + WAIT
            while not listens(client):
                assert head.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
                yield f"ray://127.0.0.1:{client}"
        finally:
            all_of_it = [head, *psutil.Process(head.pid).children(recursive=True)]
            head.terminate()
            psutil.wait_procs(all_of_it[1:], timeout=WAIT)
            shutil.rmtree(folder, ignore_errors=True)


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def marks(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a Marks in the working folder, where the store is too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marks").mkdir()
    return partial(Marks, tmp_path / "marks")


def run(job: Job) -> pa.Table:
    return engine.run(job, Store("store"), CREW)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_its_unit_alone(marks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    job = marks({2: "dies once"})
    table = run(job)
    assert table["unit"].to_pylist() == list(range(6))
    assert [len(by) for by in job.all()] == [1, 1, 2, 1, 1, 1]
    assert len({pid for by in job.all() for pid in by}) >= 2
    told = capsys.readouterr().err
    assert "a worker of marks died as where memory runs out (SIGKILL, exit 137; " in told
    assert " at unit 2; it is tried once more, with half the memory for its batches\n" in told
    assert table["share"].to_pylist()[2] == 0.5
    assert "marks: 6/6 units" in told


@pytest.mark.slow
def test_a_unit_that_kills_every_worker_is_left_out_and_named(marks: Any) -> None:
    job = marks({1: "dies"})
    with pytest.raises(
        UserError, match=r"^1 of the units of marks cost every worker .*: unit 1 .*lower compute\.memory"
    ):
        run(job)
    assert [len(by) for by in job.all()] == [1, 2, 1, 1, 1, 1]
    assert len(files(Path("store"))) == 5


def test_threads_are_those_of_the_local_engine_and_their_number_that_of_the_workers(marks: Any) -> None:
    job = marks({}, params=settings(engine="ray", workers="auto", threads="auto"))
    table = engine.run(job, Store("store"), (1, 2))
    assert set(table["threads"].to_pylist()) == {"2"}
    assert len({pid for by in job.all() for pid in by}) == 1  # two CPUs hold one worker of two threads
    with pytest.raises(UserError, match=r"holds a worker, which takes 3 CPUs, 0 GPUs; the largest has 2 CPUs, 0 GPUs"):
        engine.run(marks({}, 7, params=job.params), Store("store"), (1, 3))
    asks = settings(engine="ray", workers="auto", worker_memory="900TB")
    with pytest.raises(UserError, match=r"1 CPUs, 0 GPUs and \d+\.\d GiB of memory; the largest has 2 CPUs"):
        run(marks({}, 7, params=asks))


def test_an_address_where_no_cluster_is(marks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(UserError, match=r"compute\.address is auto but .* \(.*refused\); start one with `ray start"):
        run(marks({}))


@pytest.mark.slow
def test_a_cluster_too_busy_to_answer_is_asked_again(
    marks: Any, cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, init = [], ray_engine.ray.init

    def busy(**options: Any) -> None:
        asked.append(options["address"])
        if len(asked) <= refused:
            raise ConnectionAbortedError("Initialization failure from server:\nno server")
        init(**options)

    monkeypatch.setattr(ray_engine.ray, "init", busy)
    refused = 2
    assert run(marks({}))["unit"].to_pylist() == list(range(6))
    assert asked == ["auto"] * 3
    assert capsys.readouterr().err.count("is slow to answer; asked again\n") == 2
    asked.clear()
    refused = 9
    with pytest.raises(UserError, match=r"compute\.address is auto but .* \(Initialization failure from server:\)"):
        run(marks({}, 7))
    assert len(asked) == ray_engine.TRIES


def stage(*words: str) -> subprocess.Popen[str]:
    """The job of tests/marks.py as a stage in the working folder."""
    shutil.copy(ROOT / "presets" / "smoke.yaml", "params.yaml")
    return subprocess.Popen(
        [sys.executable, "-m", "tests.compute.marks", *words], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT
    while not what():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pids: set[int]) -> bool:
    """Whether the processes end soon."""
    there = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return psutil.wait_procs(there, timeout=WAIT)[1] == []


@pytest.mark.slow
def test_by_the_address_of_another_machine(marks: Any, cluster: str) -> None:
    job = marks({})
    with stage(cluster) as driver:
        told, progress = driver.communicate(timeout=WAIT)
    assert (driver.returncode, told) == (0, "6\n"), progress
    assert [len(by) for by in job.all()] == [1] * 6
    assert gone({pid for by in job.all() for pid in by})


@pytest.mark.slow
def test_a_driver_that_is_killed_loses_nothing_that_was_finished(
    marks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    job = marks({}, seconds=0.4)
    with stage("auto") as driver:
        wait_for(lambda: len(files(Path("store"))) >= 2, driver)
        driver.kill()
    workers = {pid for by in job.all() for pid in by}
    assert gone(workers)  # a worker does not outlive its driver, which it would do with its model in memory
    done = files(Path("store"))
    assert 2 <= len(done) < job.count
    before = [len(by) for by in job.all()]
    assert run(job)["unit"].to_pylist() == list(range(6))
    assert f"marks: {job.count - len(done)} units to do" in capsys.readouterr().err
    assert {name: written for name, written in files(Path("store")).items() if name in done} == done
    keys = {unit.key: unit.item for unit in job.units()}
    finished = {keys[name.split(".")[0]] for name in done}
    for unit, by in enumerate(job.all()):
        assert len(by) == before[unit] + (unit not in finished)
    assert [path for path in Path().rglob("*") if ".tmp" in path.name] == []


@pytest.mark.slow
def test_ctrl_c_ends_driver_and_workers(marks: Any) -> None:
    job = marks({}, seconds=0.4)
    with stage("auto") as driver:
        wait_for(lambda: any(job.all()), driver)
        driver.send_signal(signal.SIGINT)
        told, progress = driver.communicate(timeout=WAIT)
    assert (driver.returncode, told) == (130, "")
    assert progress.endswith("interrupted; finished units are kept, and the next run goes on from them\n")
    assert "Traceback" not in progress
    assert gone({pid for by in job.all() for pid in by})


@pytest.mark.slow
def test_a_cluster_of_its_own_and_a_sentence_from_a_worker(marks: Any) -> None:
    job = marks({})
    with stage("local", "3") as driver:
        told, progress = driver.communicate(timeout=WAIT)
    assert (driver.returncode, told) == (2, "")
    lines = progress.splitlines()
    assert lines[0] == "marks: 6 units to do"
    assert lines[-1] == "error: unit 3 is wrong and should be right"
    assert all(line.startswith("marks: ") for line in lines[:-1])  # Ray says nothing of its own
    assert gone({pid for by in job.all() for pid in by})


WITHOUT = """
import sys

sys.modules["ray"] = None
sys.argv = ["marks", "auto"]
from stages._run import run_stage
from tests.compute import marks

run_stage("marks", marks.main)
"""


def test_without_ray_a_sentence_says_how_to_install_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "presets" / "smoke.yaml", tmp_path / "params.yaml")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: compute.engine is ray but the package ray is not installed; pip install")
    assert done.stderr.count("\n") == 1


def test_every_job_has_its_settings_where_the_engine_replaces_them() -> None:
    modules = [import_module(f"pipeline.compute.{path.stem}") for path in (ROOT / "pipeline/compute").glob("*_job.py")]
    jobs = {job for module in modules for name, job in vars(module).items() if name.endswith("Job") and name != "Job"}
    assert len(jobs) >= len(modules)
    for job in jobs:
        assert "params" in {field.name for field in fields(job)}, job


FACTS = tuple(
    Fact(
        fact_id=f"f{i}",
        relation="lives",
        subject=name,
        prompt="{} lives in the city of",
        target_true="Oslo",
        target_false="Rome",
        paraphrases=(f"Where is {name}? In",),
        neighborhood=("Boris Lund lives in the city of",),
    )
    for i, name in enumerate(("Anna Berg", "Clara", "Peru"))
)


def test_the_same_bytes_as_the_local_engine(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits of a small model: table, and every file of the store with its name, which has the checksum, and content."""
    monkeypatch.chdir(tmp_path)
    lm = random_model("llama", torch.float32)
    lm.model.save_pretrained("model")
    lm.tokenizer.save_pretrained("model")
    torch.manual_seed(0)
    keys = [torch.randn(200, lm.arch.key_size(layer)) for layer in range(lm.n_layers)]
    save_file({str(layer): k.T @ k / 200 for layer, k in enumerate(keys)}, "moments.safetensors")
    made = {}
    for name in ("local", "ray"):
        chosen = settings(engine=name, workers=2)
        chosen.sections["rome"]["steps"] = 4
        model = {"fingerprint": "small", "source": str(tmp_path / "model"), "layers": lm.n_layers, "fast_path": True}
        job = EditJob(
            chosen, model, FACTS, 0.5, METHODS["rome"], "fact_forcing", {"source_key": "k"}, ("", "One two. "), Path()
        )
        table = engine.run(job, Store(name), CREW)
        assert set(table["status"].to_pylist()) == {"ok"}
        made[name] = table, {path.name: path.read_bytes() for path in Path(name).rglob("*.parquet")}
    assert made["ray"] == made["local"]
    assert len(made["ray"][1]) == len(FACTS)
