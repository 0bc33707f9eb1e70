"""The rehearsal in this process: its allocations, the state that it restores, and its outcome."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ratc_runtime.checkpoint import rng_state
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.distributed.world import World
from ratc_runtime.engine import make_optimizer
from ratc_runtime.tasks import make_task
from ratc_runtime.training import memory_rehearsal, out_of_memory
from torch import nn

from tests.helpers.lockfile import write_lock
from tests.helpers.packages import EIGHT_BITS
from tests.processes.test_resume import same


class Net(nn.Module):
    """Runs out of memory at the forward pass numbered `fails`, and remembers what was alive at each pass."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Conv2d(4, 1, 1)
        self.fails, self.calls = fails, 0
        self.watch: Any = lambda: None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.watch()
        if self.calls == self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.head(self.layers(image))  # type: ignore[no-any-return]


def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output - target.float()).square().mean()


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return read_lock(
        write_lock(
            tmp_path,
            training__global_batch_size=8,
            training__micro_batch_size=2,
            training__gradient_accumulation_steps=4,
            training__gradient_clipping=1.0,
        )
    )


def engine_of(net: Net, lock: Lock) -> Any:
    return SimpleNamespace(
        world=World(0, 1, torch.device("cpu")),
        module=net,
        local_module=net,
        deepspeed=False,
        optimizer=make_optimizer(net, lock),
        autocast=contextlib.nullcontext,
        train=net.train,
    )


def attempt(net: Net, lock: Lock) -> tuple[str, str]:
    return memory_rehearsal._attempt(engine_of(net, lock), criterion, make_task(lock), lock)


def test_a_rehearsal_makes_three_steps_of_at_most_three_micro_batches(lock: Lock) -> None:
    net = Net()
    assert attempt(net, lock) == (memory_rehearsal.FITS, "")
    assert net.calls == 3 * 3
    single = lock.replace(training=lock.training.replace(gradient_accumulation_steps=1))
    net = Net()
    assert attempt(net, single) == (memory_rehearsal.FITS, "")
    assert net.calls == 3


def test_optimizer_state_is_allocated_after_backward_and_kept(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    made: list[tuple[int, bool]] = []  # forward passes before, and whether the weight had its gradient
    kept: list[int] = []
    original = memory_rehearsal.RehearsalEngine.update

    def zeros_like(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
        made.append((net.calls, tensor.grad is not None))
        return torch.empty_like(tensor, **options)

    def update(self: memory_rehearsal.RehearsalEngine, max_norm: float | None) -> torch.Tensor | None:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "zeros_like", zeros_like)
            found = original(self, max_norm)
        kept.append(len(self._state))
        assert found is not None
        return found

    monkeypatch.setattr(memory_rehearsal.RehearsalEngine, "update", update)
    assert attempt(net, lock)[0] == memory_rehearsal.FITS
    count = len(list(net.parameters()))
    assert made == [(3, True)] * 2 * count
    assert kept == [3 * count] * 3


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_allocates_only_its_momentum(lock: Lock, monkeypatch: pytest.MonkeyPatch, momentum: float) -> None:
    net = Net()
    kept: list[int] = []
    original = memory_rehearsal.RehearsalEngine.update

    def update(self: memory_rehearsal.RehearsalEngine, max_norm: float | None) -> torch.Tensor | None:
        found = original(self, max_norm)
        kept.append(len(self._state))
        return found

    monkeypatch.setattr(memory_rehearsal.RehearsalEngine, "update", update)
    training = lock.training.replace(optimizer="sgd", momentum=momentum)
    assert attempt(net, lock.replace(training=training))[0] == memory_rehearsal.FITS
    assert kept == [len(list(net.parameters())) if momentum else 0] * 3


@pytest.mark.parametrize("optimizer", ["adafactor", "muon", "lion", pytest.param("adamw_8bit", marks=EIGHT_BITS)])
def test_other_optimizers_run_and_leave_no_state(lock: Lock, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """Both without a state, as in a new run, and with one, as in a continued run."""
    net = Net()
    net.matrix = nn.Parameter(torch.zeros(2, 3))
    momentum = 0.95 if optimizer == "muon" else None
    lock = lock.replace(training=lock.training.replace(optimizer=optimizer, momentum=momentum))
    engine = engine_of(net, lock)
    steps: list[int] = []
    engine.optimizer.register_step_post_hook(lambda made, *_: steps.append(len(made.state)))
    for begun in (False, True):
        if begun:
            criterion(net(torch.rand(2, 1, 8, 8)), torch.zeros(2, 1, 8, 8)).backward()  # type: ignore[no-untyped-call]
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        steps.clear()
        before = copy.deepcopy((net.state_dict(), engine.optimizer.state_dict()))
        found = memory_rehearsal._attempt(engine, criterion, make_task(lock), lock)
        assert found == (memory_rehearsal.FITS, "")
        assert steps == [len(list(net.parameters())) - 1] * 3  # the matrix has no gradient
        assert same(before, (net.state_dict(), engine.optimizer.state_dict()))


def test_optimizer_state_of_a_checkpoint_is_not_allocated_again(lock: Lock) -> None:
    net = Net()
    engine = engine_of(net, lock)
    criterion(net(torch.rand(2, 1, 8, 8)), torch.zeros(2, 1, 8, 8)).backward()  # type: ignore[no-untyped-call]
    engine.optimizer.step()
    engine.optimizer.zero_grad()
    rehearsed = memory_rehearsal.RehearsalEngine(engine, 1)
    rehearsed.backward(criterion(net(torch.rand(2, 1, 8, 8)), torch.zeros(2, 1, 8, 8)))
    rehearsed.update(None)
    assert rehearsed._state == []


@pytest.mark.parametrize("fails", [0, 1, 3, 4, 9])
def test_a_rehearsal_restores_model_optimizer_and_random_state(lock: Lock, fails: int) -> None:
    torch.manual_seed(3)
    net = Net(fails)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = rng_state()
    engine = engine_of(net, lock)
    loss = nn.Module()  # a loss may have buffers of its own
    loss.register_buffer("seen", torch.zeros(()))
    loss.forward = lambda output, target: (loss.seen.add_(1), criterion(output, target))[1]  # type: ignore[assignment]
    outcome, text = memory_rehearsal._attempt(engine, loss, make_task(lock), lock)
    assert (outcome, "Tried to allocate" in text) == (
        (memory_rehearsal.MEMORY, True) if fails else (memory_rehearsal.FITS, False)
    )
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in net.parameters())
    assert loss.seen == 0
    assert not engine.optimizer.state
    assert [group["lr"] for group in engine.optimizer.param_groups] == [lock.training.learning_rate] * 2
    now = rng_state()
    assert now.keys() == random.keys()
    assert torch.equal(torch.get_rng_state(), torch.as_tensor(random["torch"]))


def test_the_cache_is_emptied_with_the_workspaces_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: done.append("workspaces"), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("cache"))
    out_of_memory.give_back(torch.device("cuda"))
    assert done == ["workspaces", "cache"]
    out_of_memory.give_back(torch.device("cpu"))
    assert len(done) == 2


def test_each_attempt_begins_and_ends_with_an_empty_cache(lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    passes: list[int] = []
    monkeypatch.setattr(out_of_memory, "give_back", lambda device: passes.append(net.calls))
    attempt(net, lock)
    assert passes == [0, 9]
