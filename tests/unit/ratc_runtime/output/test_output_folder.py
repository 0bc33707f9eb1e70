"""The output folder of a run: full, read-only, unmounted, deleted or held by another; and a clock that jumps."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.checkpoint import files, places
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output import folder_lock
from ratc_runtime.output.folder_lock import FILE, FolderLock

from tests.helpers.lockfile import (
    BASE,
    RUNTIME,
    environment,
    results,
    run_training,
    train_command,
    write_data,
    write_lock,
)

# Each epoch of four samples begins with what `faults` says of it; the clock goes back an hour whenever it is read.
SCENE = """
import os, shutil, subprocess, threading, time
from pathlib import Path
from torch import nn
from ratc_runtime.data.isic import IsicSegmentation

hours = iter(range(10**9))
time.time = lambda: 2e9 - 3600 * next(hours)
OUT, DISK = Path("out").resolve(), Path("disk").resolve()

def run(*command):
    subprocess.run(command, check=True)

def mount(how):
    run("umount", "-l", OUT)
    run("mount", "--bind", DISK, OUT)
    run("mount", "-o", f"remount,{how},bind", OUT)

def full():
    with open(OUT / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

faults = {
    2: full,
    3: lambda: (OUT / "filler").unlink(),
    4: lambda: mount("ro"),
    5: lambda: mount("rw"),
    6: lambda: run("umount", "-l", OUT),
    7: lambda: run("mount", "--bind", DISK, OUT),  # as it was
    8: lambda: [shutil.rmtree(path) if path.is_dir() else path.unlink() for path in OUT.iterdir()],
    9: lambda: shutil.rmtree(OUT / "checkpoints"),
}

class Scene(IsicSegmentation):
    calls = -4  # the first look reads all four samples
    def __getitem__(self, index):
        if self.split == "train":
            if self.calls % 4 == 0:
                # Not into a write that is under way.
                [one.join() for one in threading.enumerate() if one.name == "checkpoint"]
                faults.get(self.calls // 4 + 1, lambda: None)()
            self.calls += 1
        return super().__getitem__(index)

def open_scene(data_dir, split):
    scene = Scene(data_dir, split, (32, 32), 1)
    scene.split = split
    return scene

def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1))
"""
NET = {**BASE["model"], "name": "mine:net", "args": {}}


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `out` is a disk of 512 KiB, mounted twice: what is unmounted in one place is not lost."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        subprocess.run(["mount", "--bind", disk, out], check=True)
        yield tmp_path
    finally:
        for place in (out, disk):
            while place.is_mount():
                subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_survives_faults_of_its_output_folder(mounted: Path, asynchronous: bool) -> None:
    write_data(mounted / "data", train=4, val=1, test=1)
    (mounted / "mine.py").write_text(SCENE)
    lock = write_lock(
        mounted / "compiled",
        model=NET,
        data__dataset="mine:open_scene",
        training__epochs=10,
        checkpoint__asynchronous=asynchronous,
    )
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("warning: checkpoint")]

    def lost(epoch: int, reason: str, kept: str = "is kept") -> str:
        path = "out/checkpoints/epoch-{:04}-step-000000.pt"
        after = f"{path.format(epoch - 1)} {kept}, training goes on"
        return f"warning: checkpoint {path.format(epoch)} not written: {reason}; {after}"

    def back(epoch: int) -> str:
        return f"warning: checkpoints can be written again: out/checkpoints/epoch-{epoch:04}-step-000000.pt"

    assert said == [
        lost(2, "No space left on device"),
        back(3),
        lost(4, "Read-only file system"),
        back(5),
        # In the background it is told with the next step, when the folder is back.
        lost(
            6, "the file system of the output folder out is gone", "is kept" if asynchronous else "was written before"
        ),
        back(7),
    ]
    out = mounted / "out"
    found = results(out)
    assert found["status"] == "finished"
    assert len(found["epochs"]) == 10
    # Epochs 2, 4 and 6 could not be kept, and those before 9 were deleted.
    assert found["best_epoch"] in (9, 10)
    assert 0 < found["wall_seconds"] < 600
    assert all(0 <= epoch["seconds"] < 600 for epoch in found["epochs"])
    assert torch.load(out / "checkpoints/last.pt", weights_only=True)["progress"]["epoch"] == 10
    assert torch.load(out / "checkpoints/last.pt", weights_only=True)["progress"]["lost"] == [2, 4, 6]
    for place in places.places_in(out / "checkpoints", ".pt"):
        assert files.fault_of(out / f"checkpoints/{place.name}.pt") is None
    assert json.loads((out / FILE).read_text())["host"] == os.uname().nodename
    assert not list((out / "checkpoints").glob(".*"))


#: A model whose checkpoint does not fit beside what `crowded` leaves, which results and tables do.
CROWDED = (
    SCENE.replace("    2: full,", "    1: crowded,")
    .replace("    3: lambda", "    3 + 10**6: lambda")
    .replace(
        "faults = {",
        """def crowded():
    full()
    os.truncate(OUT / "filler", (OUT / "filler").stat().st_size - 40 * 1024)

faults = {""",
    )
    .replace(
        "nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)", "nn.Conv2d(1, 2000, 3, padding=1), nn.Conv2d(2000, 1, 1)"
    )
)


def test_r562_for_a_run_that_never_wrote_a_checkpoint(mounted: Path) -> None:
    write_data(mounted / "data", train=4, val=1, test=1)
    (mounted / "mine.py").write_text(CROWDED)
    lock = write_lock(mounted / "compiled", model=NET, data__dataset="mine:open_scene", training__epochs=3)
    done = run_training(lock)
    assert done.returncode == 1, done.stdout
    assert "error[R562]: all 3 epochs are trained, and no checkpoint of them could be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert "best.pt" not in done.stdout
    assert not (mounted / "out/results.json").exists()
    # With room the same command trains again, to the end.
    (mounted / "out/filler").unlink()
    (mounted / "mine.py").write_text(CROWDED.replace("    1: crowded,", ""))
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert results(mounted / "out")["status"] == "finished"


def test_reported_files_exist_on_a_disk_without_symbolic_links(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=4, val=1, test=1)
    lost = SCENE.replace(
        "faults = {", "def refuse(*_):\n    raise OSError('no links here')\n\nos.symlink = refuse\n\nfaults = {} and {"
    )
    (tmp_path / "mine.py").write_text(lost)
    lock = write_lock(tmp_path / "compiled", model=NET, data__dataset="mine:open_scene")
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("written ")[2].partition("tracked ")[0].split()
    assert len(table) == 2
    assert all((tmp_path / path).is_file() for path in table)


def test_results_of_an_earlier_run_are_moved_aside_at_a_new_start(mounted: Path) -> None:
    write_data(mounted / "data", train=4, val=1, test=1)
    (mounted / "mine.py").write_text(CROWDED.replace("    1: crowded,", ""))
    never = {"checkpoint__resume": "never", "model": NET, "data__dataset": "mine:open_scene", "training__epochs": 1}
    lock = write_lock(mounted / "compiled", **never)
    assert run_training(lock).returncode == 0
    assert results(mounted / "out")["status"] == "finished"
    (mounted / "mine.py").write_text(CROWDED)
    assert run_training(lock).returncode == 1
    assert not (mounted / "out/results.json").exists()
    assert json.loads((mounted / "out/results.previous.json").read_text())["status"] == "finished"


def test_r519_for_a_stop_that_cannot_be_saved(mounted: Path) -> None:
    write_data(mounted / "data", train=4, val=1, test=1)
    stop = SCENE.replace("    2: full,", "    2: lambda: ((OUT / 'STOP').touch(), full()),")
    (mounted / "mine.py").write_text(stop)
    lock = write_lock(mounted / "compiled", model=NET, data__dataset="mine:open_scene", training__epochs=10)
    done = run_training(lock)
    assert done.returncode == 1, done.stdout
    assert "error[R519]: asked to stop after epoch 1, step 1, and the state cannot be saved" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (mounted / "out/STOPPED").exists()
    assert not (mounted / "out/STOP").exists()
    assert os.readlink(mounted / "out/checkpoints/last.pt") == "epoch-0001-step-000000.pt"


# Two runs in one folder.

HOLDER = """
import os, sys, time
from pathlib import Path
from ratc_runtime.output.folder_lock import FolderLock
folder_lock = FolderLock(Path(sys.argv[1]))
folder_lock.take(os.environ)
if os.fork() == 0:  # as a loader process, which outlives its parent for a while
    os.close(1)
    time.sleep(20)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def start(**variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(RUNTIME), **variables},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def test_r517_names_the_run_that_holds_the_folder(tmp_path: Path, hold: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.3)
    first = hold(SLURM_JOB_ID="4711")
    with pytest.raises(RuntimeFinding, match="R517") as caught:
        FolderLock(tmp_path).take({})
    assert f"process {first.pid} on {os.uname().nodename}, job 4711, started 20" in caught.value.note
    # Another job of another number is no reason to take over either.
    with pytest.raises(RuntimeFinding, match="R517"):
        FolderLock(tmp_path).take({"SLURM_JOB_ID": "4712", "SLURM_RESTART_COUNT": "3"})
    # What is dead holds nothing, though a process that it started lives on.
    first.kill()
    first.wait()
    mine = FolderLock(tmp_path)
    mine.take({})
    assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    mine.check()


def test_a_requeued_job_takes_over_the_lock_of_its_earlier_start(
    tmp_path: Path, hold: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its node may be gone, and a network's file system holds the lock of a dead node for a while."""
    monkeypatch.setattr(folder_lock, "PATIENCE_AFTER_REQUEUE", 0.5)
    hold(SLURM_JOB_ID="4711")
    mine = FolderLock(tmp_path)
    mine.take({"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "1"})
    assert "still locked by this job's earlier start" in capsys.readouterr().err
    mine.check()


def test_a_folder_taken_by_another_run_is_not_written(tmp_path: Path, hold: Any) -> None:
    mine = FolderLock(tmp_path)
    mine.take({})
    (tmp_path / FILE).unlink()
    other = hold()
    with pytest.raises(OSError, match=f"held by process {other.pid}"):
        mine.check()
    with pytest.raises(OSError, match=f"held by process {other.pid}"):
        mine.check()


def test_without_file_locks_a_live_local_process_still_holds_the_folder(
    tmp_path: Path, hold: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(folder_lock, "PATIENCE", 0.3)
    monkeypatch.setattr(fcntl, "lockf", unsupported)
    first = hold()
    with pytest.raises(RuntimeFinding, match="R517"):
        FolderLock(tmp_path).take({})
    first.kill()
    first.wait()
    FolderLock(tmp_path).take({})
    assert "no locks on this file system" in capsys.readouterr().err


def test_r517_for_two_runs_in_one_folder(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=4, val=1, test=1)
    waiting = SCENE.replace("    2: full,", "    2: lambda: time.sleep(60),")
    (tmp_path / "mine.py").write_text(waiting)
    lock = write_lock(tmp_path / "compiled", model=NET, data__dataset="mine:open_scene")
    first = subprocess.Popen(
        train_command(lock),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert any("best so far" in line for line in first.stdout)
        second = run_training(lock, "--fresh")
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert second.returncode == 1
    assert "error[R517]: another run writes into the output folder out" in second.stderr
    assert f"process {first.pid} on " in second.stderr
    assert "Traceback" not in second.stderr
    assert (tmp_path / "out/checkpoints/last.pt").exists()
    assert not (tmp_path / "out/checkpoints.previous").exists()
