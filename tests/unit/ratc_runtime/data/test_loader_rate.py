"""The rate at which a loader process delivers samples, with an injected clock."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch
from ratc_runtime.data.loader_rate import loader_rate
from ratc_runtime.tasks import make_task

from tests.unit.ratc_runtime.data.test_survey import lock_with


class Slow:
    """Samples that take a tenth of a second each by the clock; the first one takes ten."""

    def __init__(self, length: int) -> None:
        self.length, self.now, self.read = length, 100.0, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert torch.get_num_threads() == 1
        random.random()
        self.now += 0.1 if self.read else 10.0
        self.read += 1
        return torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)


@pytest.fixture
def rate_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    def measured(data: Slow, **changes: Any) -> float | None:
        monkeypatch.setattr(time, "perf_counter", lambda: data.now)
        lock = lock_with(**changes)
        return loader_rate(data, lock, make_task(lock).collate)

    return measured


def test_the_rate_leaves_out_the_first_sample(rate_of: Any) -> None:
    before, threads = random.getstate(), torch.get_num_threads()
    data = Slow(1000)
    assert rate_of(data) == pytest.approx(10.0)
    assert data.read == 32  # the first, and those of three seconds
    assert random.getstate() == before
    assert torch.get_num_threads() == threads


def test_the_rate_reads_at_most_one_epoch(rate_of: Any) -> None:
    data = Slow(12)
    assert rate_of(data, training__global_batch_size=4, training__micro_batch_size=4) == pytest.approx(10.0)
    assert data.read == 12


def test_a_single_sample_gives_no_rate(rate_of: Any) -> None:
    assert rate_of(Slow(1), training__global_batch_size=1, training__micro_batch_size=1) is None
