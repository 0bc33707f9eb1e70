"""The cache of the compiler is kept for the next start, and its time counts as set-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.distributed.world import World
from ratc_runtime.engine.base import BaseEngine
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.time_accounting import TimeAccounting
from ratc_runtime.training import compiling
from ratc_runtime.training.run import Progress

from tests.helpers.lockfile import write_lock


@pytest.fixture(params=[{"training__compile": True}, {"model__attention_memory": "fused"}], ids=["compile", "fused"])
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> Lock:
    return read_lock(write_lock(tmp_path, **request.param))


def test_compiled_kernels_are_cached_in_the_output_folder_by_default(lock: Lock, tmp_path: Path) -> None:
    environment = {"TRITON_CACHE_DIR": "/fast/disk"}
    compiling.prepare(lock, tmp_path / "outputs", environment)
    assert environment == {
        "TRITON_CACHE_DIR": "/fast/disk",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "outputs/kernels/inductor"),
    }


def test_a_run_without_compiling_sets_no_cache_variables(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    lock = read_lock(write_lock(tmp_path))
    compiling.prepare(lock, tmp_path, environment)
    assert not environment
    clock = compiling.Clock(lock)
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
    assert clock() == 0.0


@pytest.mark.parametrize("name", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_a_disabled_compiler_contradicts_the_lock(
    name: str, lock: Lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine(BaseEngine):
        def __init__(self) -> None:
            self.world = World(0, 1, torch.device("cpu"))

        def effective(self) -> dict[str, Any]:
            training = lock.training
            return {
                "world size": 1,
                "gradient accumulation": training.gradient_accumulation_steps,
                "precision": training.precision,
                "optimizer": training.optimizer,
                "betas": tuple(training.betas),
                "weight decay": {training.weight_decay},
            }

    Engine().verify(lock)
    monkeypatch.setenv(name, "1")
    with pytest.raises(RuntimeFinding, match="R503") as raised:
        Engine().verify(lock)
    assert name in raised.value.note
    Engine().verify(read_lock(write_lock(tmp_path / "plain")))


def test_the_clock_measures_the_time_of_torch_compile(lock: Lock) -> None:
    torch._dynamo.reset()  # what this process has compiled before
    clock = compiling.Clock(lock)
    function = torch.compile(lambda x: x * 2, backend="eager")
    function(torch.ones(1))
    first = clock()
    assert first > 0
    function(torch.ones(1))
    assert clock() == first, "nothing was compiled again"


def test_compile_time_counts_as_setup_at_any_step() -> None:
    time, compiled = [100.0], [5.0]
    account = TimeAccounting(Progress(), lambda: time[0], lambda: compiled[0])
    account.start_interval()
    time[0], compiled[0] = 120.0, 21.0  # a step of 20 seconds, 16 of which went into kernels
    account.step(8, skipped=0)
    assert account.interval()["speed/samples_per_second"] == 2.0
    account.lap("training")
    time[0] = 126.0
    account.lap("training")
    seconds = account.record(2, 16)["seconds"]
    assert (seconds["training"], seconds["setup"], seconds["total"]) == (10.0, 16.0, 26.0)
    assert account.progress.epoch_seconds == 10.0
