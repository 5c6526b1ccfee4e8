"""Batches from a budget in bytes; work that runs out of memory goes on with half of it."""

import psutil
import pytest
import torch

from pipeline.lm.forward import Suffix, record
from pipeline.lm.memory import budget, halving, row_bytes, rows_within
from pipeline.lm.prompts import pack
from tests.lm.families import random_model


def test_out_of_memory_halves_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def work(memory: int) -> int:
        asked.append(memory)
        if memory > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return memory

    assert halving(work, 1000) == 250
    assert asked == [1000, 500, 250]
    assert capsys.readouterr().err.count("out of memory") == 2


def test_a_real_allocation_that_fails_is_recognised() -> None:
    total = psutil.virtual_memory().total

    def work(memory: int) -> int:
        if memory >= total:
            return torch.empty(1 << 60, dtype=torch.uint8).numel()
        return memory

    assert total // 4 <= halving(work, 2 * total) < total


def test_other_errors_and_endless_shortage_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="inconsistent"):
        halving(lambda memory: torch.ones(2) @ torch.ones(3), 1000)
    asked: list[int] = []

    def never(memory: int) -> int:
        asked.append(memory)
        raise MemoryError

    with pytest.raises(MemoryError):
        halving(never, 1 << 20)
    assert len(asked) == 7


def test_rows_grow_with_the_budget_and_shrink_with_the_work() -> None:
    lm = random_model("llama", torch.float32)
    long, short = list(range(5, 45)), list(range(5, 15))
    suffixes = [Suffix.after(record(lm, pack([ids])), range(len(ids))) for ids in (long, short)]
    assert row_bytes(lm, suffixes[0], 1, gradient=True) > 3 * row_bytes(lm, suffixes[1], 1, gradient=True)
    assert row_bytes(lm, suffixes[0], 1, gradient=True) > row_bytes(lm, suffixes[0], 1, gradient=False)
    memory = 10 * row_bytes(lm, suffixes[0], 1, gradient=True)
    assert rows_within(lm, memory, 1, gradient=True)(suffixes[0]) == 10
    assert rows_within(lm, 1, 1, gradient=True)(suffixes[0]) == 1


def test_the_budget_is_what_params_say_or_a_share_of_what_is_free() -> None:
    cpu = torch.device("cpu")
    assert budget(12345, cpu, gradient=True) == 12345
    assert 0 < budget(None, cpu, gradient=False) <= budget(None, cpu, gradient=True)
    assert budget(None, cpu, gradient=True) <= psutil.virtual_memory().available
