"""A run that is stopped and continued equals an undisturbed one."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.effort import HANGS_S
from tests.helpers.lockfile import BASE, environment, results, run_training, train_command, write_data, write_lock
from tests.helpers.packages import EIGHT_BITS

SLOW = """
import os, time
from ratc_runtime.data.isic import IsicSegmentation

class Slow(IsicSegmentation):
    "Waits at every sample while the file `slow` is there, so that a signal meets a step under way."
    def __getitem__(self, index):
        if os.path.exists("slow"):
            time.sleep(0.1)
        return super().__getitem__(index)

def open_slow(data_dir, split):
    return Slow(data_dir, split, (32, 32), 1)
"""


def slow_project(folder: Path) -> None:
    write_data(folder / "data", train=25)
    (folder / "mine.py").write_text(SLOW)
    (folder / "slow").touch()


def stop_midway(command: list[str], folder: Path, how: Any, line: str) -> subprocess.CompletedProcess[str]:
    """Start a run, ask it to stop after it printed `line`, and return what came of it."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    printed = []
    for text in process.stdout:
        printed.append(text)
        if line in text:
            how(process)
            break
    try:
        rest, errors = process.communicate(timeout=HANGS_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, "".join(printed) + rest, errors)


def group_signal(number: int) -> Any:
    return lambda process: os.killpg(process.pid, number)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    slow_project(folder)
    (folder / "slow").unlink()
    done = run_training(write_lock(folder / "compiled", data__dataset="mine:open_slow"))
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.mark.parametrize(
    ("how", "workers", "mlflow"),
    [
        (group_signal(signal.SIGTERM), 1, False),
        (group_signal(signal.SIGUSR2), 0, False),
        (lambda process: (Path(f"/proc/{process.pid}/cwd") / "out/STOP").touch(), 0, False),
        # Each of its starts imports MLflow and makes or opens its database.
        pytest.param(group_signal(signal.SIGTERM), 0, True, marks=pytest.mark.slow),
    ],
    ids=["term", "usr2", "file", "mlflow"],
)
def test_a_stopped_run_continues_bit_for_bit(
    tmp_path: Path, undisturbed: Path, how: Any, workers: int, mlflow: bool
) -> None:
    slow_project(tmp_path)
    changes: dict[str, Any] = {
        "data__dataset": "mine:open_slow",
        "data__num_workers": workers,
        "data__prefetch_factor": 2 if workers else None,
        "logging__mlflow": mlflow,
    }
    lock = write_lock(tmp_path / "compiled", **changes)
    stopped = stop_midway(train_command(lock), tmp_path, how, "epoch 1/2  step 2/6")
    assert stopped.returncode == 0, stopped.stderr
    assert "run the same command again to continue" in stopped.stdout
    between = results(tmp_path / "out")
    assert between["status"] == "stopped"
    assert between["epochs"] == []
    assert "test" not in between
    (tmp_path / "slow").unlink()
    assert not (tmp_path / "out/STOP").exists()
    continued = run_training(lock)
    assert continued.returncode == 0, continued.stderr
    assert "continuing after epoch 0, step " in continued.stdout

    for name in ("last.pt", "best.pt"):
        first, second = (
            torch.load(out / "checkpoints" / name, weights_only=True) for out in (tmp_path / "out", undisturbed)
        )
        for key in ("model", "optimizer", "rng", "fingerprint"):
            assert same(first[key], second[key]), (name, key)
    a, b = results(tmp_path / "out"), results(undisturbed)
    for key in ("test", "baseline", "best_epoch"):
        assert a[key] == b[key]
    for one, other in zip(a["epochs"], b["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    if mlflow:
        with sqlite3.connect(tmp_path / "out/mlflow.db") as store:
            assert store.execute("select status from runs").fetchall() == [("FINISHED",)]


STOPPING = """
from pathlib import Path
from ratc_runtime.callbacks import Callback

import torch

class Signs(torch.optim.Optimizer):
    "Moves each weight by the sign of a running mean of gradients, as Lion does."
    def __init__(self, params, momentum):
        super().__init__(params, {"momentum": momentum})
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                    mean.lerp_(weight.grad, 1 - group["momentum"])
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(mean.sign() * group["lr"])

class Stopping(Callback):
    "Asks for a stop in the first epoch, once."
    def step(self, run, loss):
        if Path("once").exists():
            Path("once").unlink()
            Path("out/STOP").touch()
"""


@pytest.mark.parametrize(
    ("accelerate", "training"),
    [
        (False, {"optimizer": "adafactor"}),
        (True, {"optimizer": "muon", "momentum": 0.95}),
        (True, {"optimizer": "mine:Signs", "optimizer_args": {"momentum": 0.9}}),
        (False, {"optimizer": "lion"}),
        pytest.param(True, {"optimizer": "adamw_8bit"}, marks=EIGHT_BITS),
        pytest.param(False, {"optimizer": "lion_8bit"}, marks=EIGHT_BITS),
    ],
    ids=["adafactor", "muon", "own", "lion", "adamw_8bit", "lion_8bit"],
)
def test_other_optimizers_continue_bit_for_bit(tmp_path: Path, accelerate: bool, training: dict[str, Any]) -> None:
    ends = []
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        write_data(folder / "data")
        (folder / "mine.py").write_text(STOPPING)
        values = {**BASE["training"], **training, "callbacks": ["mine:Stopping"]}
        lock = write_lock(folder / "compiled", training=values, engine__use_accelerate=accelerate)
        if name == "stopped":
            (folder / "once").touch()
            stopped = run_training(lock)
            assert stopped.returncode == 0, stopped.stderr
            assert results(folder / "out")["status"] == "stopped"
        done = run_training(lock)
        assert done.returncode == 0, done.stderr
        assert ("continuing after epoch 0, step " in done.stdout) == (name == "stopped")
        ends.append(torch.load(folder / "out/checkpoints/last.pt", weights_only=True))
    for key in ("model", "optimizer", "rng"):
        assert same(ends[0][key], ends[1][key]), key


def test_early_stopping_keeps_its_count_over_a_stop(tmp_path: Path) -> None:
    """No epoch after the first is an improvement by a thousand, so the third is the last."""
    rule = {"metric": "loss", "patience": 2, "min_delta": 1000.0}
    for name in ("whole", "stopped"):
        folder = tmp_path / name
        write_data(folder / "data")
        (folder / "mine.py").write_text(STOPPING.replace("if Path", "if run.progress.epoch == 1 and Path"))
        values = {**BASE["training"], "epochs": 5, "early_stopping": rule, "callbacks": ["mine:Stopping"]}
        lock = write_lock(folder / "compiled", training=values, checkpoint__every_epochs=5)
        if name == "stopped":
            (folder / "once").touch()
            stopped = run_training(lock)
            assert stopped.returncode == 0, stopped.stderr
            assert results(folder / "out")["status"] == "stopped"
        done = run_training(lock)
        assert done.returncode == 0, done.stderr
        assert ("continuing after epoch 1, step " in done.stdout) == (name == "stopped")
        assert "ended after epoch 3 of 5: loss did not improve in 2 epochs" in done.stdout
        found = results(folder / "out")
        assert (found["status"], found["ended_by"], len(found["epochs"])) == ("finished", "early_stopping", 3)
        assert torch.load(folder / "out/checkpoints/last.pt", weights_only=True)["progress"]["epoch"] == 3
        again = run_training(lock)
        assert again.returncode == 0, again.stderr
        assert "already finished" in again.stdout
    ends = [torch.load(tmp_path / name / "out/checkpoints/last.pt", weights_only=True) for name in ("whole", "stopped")]
    assert same(ends[0]["model"], ends[1]["model"])


def test_a_second_interrupt_ends_the_run_at_once(tmp_path: Path) -> None:
    slow_project(tmp_path)
    lock = write_lock(tmp_path / "compiled", data__dataset="mine:open_slow")

    def twice(process: subprocess.Popen[str]) -> None:
        # Both while one step is loading its samples.
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)

    ended = stop_midway(train_command(lock), tmp_path, twice, "epoch 1/2  step 2/6")
    assert ended.returncode == -signal.SIGINT
    assert not (tmp_path / "out/checkpoints").exists()


def test_resume_set_to_never_trains_from_the_beginning(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    lock = write_lock(tmp_path / "compiled", training__epochs=1, checkpoint__resume="never")
    for _ in range(2):
        done = run_training(lock)
        assert done.returncode == 0, done.stderr
        assert "epoch 1/1" in done.stdout
