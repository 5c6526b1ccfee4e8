"""This machine as a worker sees it: its cores, how many workers it holds, and a model loaded for one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import torch

from pipeline.compute.keys import path
from pipeline.lm.load import load, pick_device

if TYPE_CHECKING:
    from pipeline.lm.model import LanguageModel
    from pipeline.settings.params import Params

WORKER_BYTES = 3 * 1024**3  # of a worker with the embedded model, amply; larger models: set compute.workers
CREW_SHARE = 0.8


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def crew(params: Params) -> tuple[int, int]:
    """(workers, threads of each): one worker a GPU, or on a CPU one a core as far as memory allows.

    Neither depends on how much work there is, so that results do not either.
    """
    compute, device = params.compute, pick_device(params.model.device)
    if params.model.device_map is not None or device.type == "mps" or device.index is not None:
        auto = 1
    elif device.type == "cuda":
        auto = torch.cuda.device_count()
    else:
        auto = max(1, min(cores(), int(CREW_SHARE * psutil.virtual_memory().total / WORKER_BYTES)))
    workers = auto if compute.workers == "auto" else compute.workers
    threads = max(1, cores() // workers) if compute.threads == "auto" else compute.threads
    return workers, threads


def loaded(params: Params, model: Mapping[str, Any]) -> LanguageModel:
    """The model that data/model.json describes, for a worker, by the path that params ask for."""
    return set_up(params, model["source"], fast=path(params, model) == "fast")


def set_up(params: Params, source: str, *, fast: bool = False, alone: bool = False) -> LanguageModel:
    """The model at `source`, a folder or hub name, and torch as params' `compute` wants it.

    fast: whether its resumed forward is to be used (`keys.path`). alone: this process is the stage's only one, and
    takes the threads of all workers.
    """
    workers, threads = crew(params)
    torch.set_num_threads(max(threads, min(threads * workers, cores())) if alone else threads)
    torch.backends.cuda.matmul.allow_tf32 = params.compute.tf32
    torch.backends.cudnn.allow_tf32 = params.compute.tf32
    lm = load(source, **params.model.model_dump())
    if params.compute.compile:
        for block in lm.arch.blocks:
            block.compile(dynamic=True)
    return replace(lm, fast=fast)
