"""Faults of two processes in training: they end, name the reason, and continue to the undisturbed result.

`docs/develop/faults.md` is the table of faults, each with the test that proves its row.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.effort import HANGS_S
from tests.helpers.lockfile import BASE, environment, results, write_data, write_lock
from tests.processes.test_distributed import ACCELERATE, TORCHRUN, TWO, accelerate_command
from tests.processes.test_resume import same

pytestmark = pytest.mark.slow

MINE = """
import os, time
import torch
from ratc_runtime.data.isic import IsicSegmentation

def asked(fault):
    "The file `fault` names a fault and the rank it is meant for."
    try:
        return open("fault").read() == f"{fault} {os.environ.get('RANK', '0')}"
    except OSError:
        return False

class Slow(IsicSegmentation):
    calls = 0
    def __getitem__(self, index):
        self.calls += 1
        if asked("slow"):
            time.sleep(0.1)
        if asked("hang in the dataset") and self.calls > 8:
            time.sleep(1000)
        return super().__getitem__(index)

def open_slow(data_dir, split):
    return Slow(data_dir, split, (32, 32), 1)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.dropout = torch.nn.Conv2d(1, 1, 3, padding=1), torch.nn.Dropout(0.2)
        self.calls = 0
    def forward(self, image):
        self.calls += self.training
        if asked("raise") and self.calls == 8:
            raise KeyError("no such organ")
        if asked("hang in the model") and self.calls == 8:
            time.sleep(1000)
        out = self.layer(self.dropout(image))
        return out * float("nan") if asked("nan") and self.calls == 8 else out
"""
ALL = "slow 0"  # one slow rank slows both


def project(folder: Path) -> Path:
    """Data, parts that go wrong when asked, and a lock for two processes; returns the lock."""
    write_data(folder / "data", train=25)
    (folder / "mine.py").write_text(MINE)
    return compiled(folder, {})


def compiled(folder: Path, artifacts: dict[str, str], **changes: Any) -> Path:
    values: dict[str, Any] = {
        "parallel": TWO,
        "training__micro_batch_size": 1,
        "training__epochs": 5,
        "model": {**BASE["model"], "name": "mine:Net", "args": {}},
        "data__dataset": "mine:open_slow",
    }
    return write_lock(folder / "compiled", artifacts, **{**values, **changes})


@dataclass
class Started:
    """A run under way. `ranks` are the processes that train, by rank."""

    process: subprocess.Popen[str]
    folder: Path
    printed: list[str] = field(default_factory=list)

    def until(self, line: str) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.printed.append(text)
            if line in text:
                return
        raise AssertionError("".join(self.printed))

    @property
    def ranks(self) -> dict[int, int]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                if (folder / "cwd").resolve() != self.folder:
                    continue
            except OSError:
                continue
            found.update({int(one[5:]): int(folder.name) for one in variables if one.startswith(b"RANK=")})
        return found

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for everything that holds the output, orphans too, and return what came of it."""
        try:
            rest, _ = self.process.communicate(timeout=HANGS_S)
        finally:
            for pid in {self.process.pid, *self.ranks.values()}:
                if (Path("/proc") / str(pid) / "cwd").exists() and self.process.poll() is None:
                    os.kill(pid, signal.SIGKILL)
        printed = "".join(self.printed) + rest
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, printed, printed)


def start(lock: Path, fault: str = "", command: list[str] | None = None, **variables: str) -> Started:
    folder = lock.parent.parent
    (folder / "fault").write_text(fault)
    process = subprocess.Popen(
        command or [*TORCHRUN, "-m", "ratc_runtime.train", "--lock", str(lock)],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return Started(process, folder.resolve())


def to(rank: int, number: int) -> Callable[[Started], None]:
    return lambda run: os.kill(run.ranks[rank], number)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = start(project(folder)).end()
    assert done.returncode == 0, done.stdout
    return folder / "out"


#: What is done when a line is printed, and whether the run ends well: it has saved where it was.
FROM_OUTSIDE = (
    ("epoch 1/5  step 1/6", to(0, signal.SIGTERM), 0),
    ("epoch 1/5  step 4/6", to(1, signal.SIGINT), 0),
    ("epoch 2/5  step 2/6", lambda run: run.process.kill(), -signal.SIGKILL),
    ("epoch 3/5  step 2/6", to(1, signal.SIGKILL), 1),
)


def test_after_every_fault_two_processes_reach_the_undisturbed_result(tmp_path: Path, undisturbed: Path) -> None:
    """One run that meets every fault in turn, and is continued after each by the same command."""
    lock, out = project(tmp_path), tmp_path / "out"
    for line, fault, status in FROM_OUTSIDE:
        run = start(lock, ALL)
        run.until(line)
        fault(run)
        done = run.end()
        assert done.returncode == status, (line, done.stdout)
        if status != 1:
            assert results(out)["status"] == "stopped", done.stdout
            assert "run the same command again to continue" in done.stdout
    # The last one was killed by rank, while the other one waited for it.
    assert "error[R514]: rank 0 has lost the other processes" in done.stdout
    assert "was killed, last seen in `" in done.stdout
    assert (out / "STOPPED").read_text() == "the launcher is gone\n"
    saved = torch.load(out / "checkpoints/last.pt", weights_only=True)["progress"]
    assert (saved["epoch"], saved["step"]) == (2, 0), "the last whole one is the one that is found"

    raised = start(lock, "raise 1").end()
    assert raised.returncode == 1
    assert "KeyError: 'no such organ'" in raised.stdout
    assert "in forward" in raised.stdout
    assert "error[R528]: rank 1 on " in raised.stdout
    assert "error[R514]: rank 0 has lost the other processes\n  note: rank 1: R528, rank 1 on " in raised.stdout

    broken = start(lock, "nan 1").end()
    assert broken.returncode == 1
    assert "error[R507]: the loss is not finite in epoch 3, step 4, on rank 1\n" in broken.stdout
    named = broken.stdout.split("samples of the batch: ")[1].splitlines()[0]
    assert named.startswith("train")
    assert "," not in named, "the other rank's are well"
    assert "the last good checkpoint is kept: out/checkpoints/last.pt" in broken.stdout

    hung = start(lock, "hang in the dataset 1", RATC_TIMEOUT_SECONDS="8").end()
    assert hung.returncode == 1
    said = hung.stdout.split("error[R525]: ")[1]
    assert said.startswith("no progress for 8 s in epoch 3, step ")
    assert f"rank 1 on {os.uname().nodename} hangs in `loader`" in said.splitlines()[0]
    assert "in __getitem__\n            time.sleep(1000)" in said
    assert "rank 0 waits in `" in said
    assert "R514" not in hung.stdout, "what follows from it is nothing to tell"

    finished = start(lock).end()
    assert finished.returncode == 0, finished.stdout
    assert "continuing after epoch 2, step 0" in finished.stdout
    for name in ("last.pt", "best.pt"):
        first, second = (torch.load(one / "checkpoints" / name, weights_only=True) for one in (out, undisturbed))
        for key in ("model", "optimizer", "rng"):
            assert same(first[key], second[key]), (name, key)
    a, b = results(out), results(undisturbed)
    assert a["test"] == b["test"]
    for one, other in zip(a["epochs"], b["epochs"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_stopped_main_process_is_reported_and_killed_by_another_rank(tmp_path: Path) -> None:
    """SIGSTOP holds every thread, the watchdog's too: the other rank has to speak, and to end it."""
    run = start(project(tmp_path), ALL, RATC_TIMEOUT_SECONDS="8")
    run.until("epoch 1/5  step 3/6")
    stopped = run.ranks[0]
    os.kill(stopped, signal.SIGSTOP)
    done = run.end()
    assert done.returncode == 1, done.stdout
    said = done.stdout.split("error[R525]: ")[1]
    assert f"rank 0 on {os.uname().nodename} does not answer" in said.splitlines()[0]
    assert f"process {stopped}, does not answer: it is stopped, dead, or" in said
    assert f"rank 1 waits in `collective` on {os.uname().nodename}" in said or "rank 1 waits in `backward`" in said
    assert not (Path("/proc") / str(stopped)).exists()
    stacks = next((tmp_path / "out/watchdog").glob("*/rank-1.txt")).read_text()
    assert "thread MainThread\n" in stacks


def test_a_hang_in_the_model_under_accelerate_is_reported(tmp_path: Path) -> None:
    project(tmp_path)
    lock = compiled(tmp_path, {"accelerate.yaml": ACCELERATE}, engine={**BASE["engine"], "use_accelerate": True})
    done = start(lock, "hang in the model 0", accelerate_command(lock), RATC_TIMEOUT_SECONDS="8").end()
    assert done.returncode == 1, done.stdout
    said = done.stdout.split("error[R525]: ")[1]
    assert f"rank 0 on {os.uname().nodename} hangs in `forward`" in said.splitlines()[0]
    assert "in forward\n            time.sleep(1000)" in said
    assert "rank 1 waits in `backward`" in said


def test_a_hanging_loader_process_prints_its_own_stack(tmp_path: Path) -> None:
    project(tmp_path)
    lock = compiled(
        tmp_path,
        {},
        parallel=BASE["parallel"],
        data__num_workers=1,
        data__prefetch_factor=2,
        training__micro_batch_size=2,
    )
    command = [sys.executable, "-m", "ratc_runtime.train", "--lock", str(lock)]
    before = time.monotonic()
    done = start(lock, "hang in the dataset 0", command, RATC_TIMEOUT_SECONDS="8").end()
    assert time.monotonic() - before > 8
    assert done.returncode == 1, done.stdout
    assert "error[R525]: no progress for 8 s in epoch 1, step " in done.stdout
    assert ", in `loader`" in done.stdout
    assert (
        done.stdout.index("loader process ") < done.stdout.index(" in __getitem__") < done.stdout.index("error[R525]")
    )
