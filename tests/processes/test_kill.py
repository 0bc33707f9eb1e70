"""`kill -9` at any moment: the run that is started again ends like an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.effort import HANGS_S
from tests.helpers.lockfile import BASE, environment, results, run_training, train_command, write_data, write_lock
from tests.helpers.waiting import wait_until
from tests.processes.test_resume import same, slow_project, stop_midway

HERE = Path(__file__).resolve().parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TWO = {**BASE["parallel"], "world_size": 2, "processes_per_node": 2}

# Dropout draws random numbers in every step, batch norm has buffers.
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2),
                         nn.Conv2d(4, 1, 1))
"""


def assert_same_run(found: Path, expected: Path) -> None:
    """Everything but the time that passed."""
    for name in ("last.pt", "best.pt"):
        one, other = (torch.load(out / "checkpoints" / name, weights_only=True) for out in (found, expected))
        for key in ("model", "optimizer", "scaler", "rng", "fingerprint"):
            assert same(one[key], other[key]), (found, name, key)
        for key in ("epoch", "step", "loss_sum", "best_epoch", "lost"):
            assert one["progress"][key] == other["progress"][key], (found, name, key)
    a, b = results(found), results(expected)
    for key in ("status", "test", "baseline", "best_epoch", "fingerprint"):
        assert a[key] == b[key], key
    for one, other in zip(a["epochs"], b["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert list_checkpoints(found) == list_checkpoints(expected)


def list_checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


@pytest.mark.slow
def test_fifty_kills_do_not_change_the_result(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=17, val=3)
    (tmp_path / "mine.py").write_text(NET)
    changes: dict[str, Any] = {
        "model": {**BASE["model"], "name": "mine:net", "args": {}},
        "checkpoint__every_steps": 1,
        "training__epochs": 3,
        "data__augmentations": [{"RandomHorizontalFlip": {"p": 0.5}}, {"RandomRotation": {"degrees": 20}}],
    }
    write_lock(tmp_path / "sync", **changes)
    write_lock(tmp_path / "async", **changes, checkpoint__asynchronous=True)
    done = subprocess.run(
        [sys.executable, str(HERE / "killing.py"), "20261125", "50"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    log = (tmp_path / "log.txt").read_text() if (tmp_path / "log.txt").exists() else ""
    assert done.returncode == 0, (done.stderr, log[-3000:])
    said = json.loads(done.stdout.splitlines()[-1])
    print(said)
    assert sum(said["killed"].values()) == 50
    assert len(said["killed"]) >= 10, "hardly any kind of point was met"
    assert "Traceback" not in log
    for number in range(said["rounds"]):
        assert_same_run(tmp_path / f"killed-{number}", tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_killed_run_with_loader_processes_continues(tmp_path: Path) -> None:
    """As above, with nothing prepared: from the shell, with loader processes, in the middle of epochs."""
    slow_project(tmp_path)
    changes: dict[str, Any] = {
        "model": {**BASE["model"], "name": "mine:net", "args": {}},
        "data__dataset": "mine:open_slow",
        "data__num_workers": 1,
        "data__prefetch_factor": 2,
        "checkpoint__every_steps": 1,
        "checkpoint__asynchronous": True,
    }
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + NET)
    lock = write_lock(tmp_path / "compiled", **changes)
    for epoch in (0, 1):

        def kill(process: subprocess.Popen[str], epoch: int = epoch) -> None:
            written = (tmp_path / "out/checkpoints").glob
            wait_until(
                lambda: any(written(f"epoch-{epoch:04}-step-*[1-9].pt")), f"a checkpoint within epoch {epoch + 1}"
            )
            os.killpg(process.pid, signal.SIGKILL)

        ended = stop_midway(train_command(lock), tmp_path, kill, f"epoch {epoch + 1}/2  step ")
        assert ended.returncode == -signal.SIGKILL
    (tmp_path / "slow").unlink()
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert "continuing after epoch 1, step " in done.stdout
    undisturbed = run_training(lock, "--output-dir", "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert_same_run(tmp_path / "out", tmp_path / "undisturbed")


@pytest.mark.slow
def test_after_a_killed_rank_the_other_ends_and_the_run_continues(tmp_path: Path) -> None:
    slow_project(tmp_path)
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + NET)
    lock = write_lock(
        tmp_path / "compiled",
        model={**BASE["model"], "name": "mine:net", "args": {}},
        data__dataset="mine:open_slow",
        parallel=TWO,
        training__micro_batch_size=1,
        checkpoint__every_steps=1,
    )

    def kill_the_second(process: subprocess.Popen[str]) -> None:
        os.kill(rank_process(tmp_path, 1), signal.SIGKILL)

    command = [*TORCHRUN, "-m", "ratc_runtime.train", "--lock", str(lock)]
    ended = stop_midway(command, tmp_path, kill_the_second, "epoch 1/2  step 3/6")
    assert ended.returncode != 0
    assert "error[R514]: rank 0 has lost the other processes" in ended.stderr, ended.stderr
    (tmp_path / "slow").unlink()
    for more in ((), ("--output-dir", "undisturbed")):
        done = subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANGS_S
        )
        assert done.returncode == 0, done.stderr
        assert ("continuing after epoch 0, step " in done.stdout) is not bool(more)
    assert_same_run(tmp_path / "out", tmp_path / "undisturbed")


def rank_process(folder: Path, rank: int) -> int:
    """The process number of a rank that runs in `folder`."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
            if (path / "cwd").resolve() == folder and f"RANK={rank}".encode() in variables:
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")
