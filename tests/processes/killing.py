"""Kills a training run with SIGKILL at many points and starts it again; a script that test_kill.py runs.

This process imports everything and builds nothing; each start of the run is a fork of it, as fresh as one of its own
but three seconds earlier. Most points are counted, so that they are met on any machine: before or after the n-th time
that something happens. The others are moments: this process sends the signal after a while.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy  # noqa: F401
import PIL.Image
import torch
import torch._dynamo
from ratc_runtime import engine, train  # noqa: F401
from ratc_runtime.checkpoint import files, places
from ratc_runtime.commands import evaluate
from ratc_runtime.output import folder_lock  # noqa: F401
from ratc_runtime.training import finalize, open_run, step  # noqa: F401

PIL.Image.init()

#: What is counted, by name: inside the writing of a checkpoint, between its renames, and all around it.
COUNTED: dict[str, tuple[Any, str]] = {
    "write": (files._Writer, "_write"),
    "seal": (files, "_seal"),
    "sync": (os, "fsync"),
    "check": (files, "_fault_of"),
    "replace": (os, "replace"),
    "link": (Path, "symlink_to"),
    "remove": (files, "remove"),
    "step": (step, "training_step"),
    "evaluate": (evaluate, "evaluate"),
    "load": (torch, "load"),
    "results": (finalize, "write_results"),
}


def count_or_kill(kind: str | None, at: int, counts: Counter[str]) -> None:
    """Count the events of this process; kill it at event `at` of `kind`."""

    def event(name: str) -> None:
        counts[name] += 1
        if name == kind and counts[name] == at:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # nothing may happen between the signal and the end

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            event(name)
            value = function(*arguments, **named)
            event(name)
            return value

        return call

    for name, (holder, attribute) in COUNTED.items():
        setattr(holder, attribute, watched(name, getattr(holder, attribute)))


def start(lock: Path, output: Path, kind: str | None = None, at: int = 0, report: Path | None = None) -> int:
    """Fork a run of `lock` into `output`; return its process."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        counts: Counter[str] = Counter()
        count_or_kill(kind, at, counts)
        finalize._draw = lambda *_: []  # pictures take longer than the run
        status = train.main(["--lock", str(lock), "--output-dir", str(output)])
        if report is not None:
            report.write_text(json.dumps(counts))
    finally:
        sys.stdout.flush()
        os._exit(status)


def assert_whole(output: Path) -> None:
    """Whatever lies under a checkpoint's name is whole, and results are whole or not there."""
    folder = output / "checkpoints"
    for place in places.places_in(folder, ".pt"):
        fault = files.fault_of(folder / f"{place.name}.pt")
        assert fault is None, fault
    if (output / "results.json").exists():
        json.loads((output / "results.json").read_text())


def main(seed: int, wanted: int) -> None:
    locks = [Path("sync/lock.yaml"), Path("async/lock.yaml")]
    begun = time.monotonic()
    _, status = os.waitpid(start(locks[0], Path("undisturbed"), report=Path("counts.json")), 0)
    assert status == 0
    duration, counts = time.monotonic() - begun, json.loads(Path("counts.json").read_text())
    chance = random.Random(seed)
    killed: Counter[str] = Counter()
    rounds = starts = 0
    # To the end of a round even when there have been enough: what was killed last must be continued too.
    while killed.total() < wanted:
        output, lock, finished = Path(f"killed-{rounds}"), locks[rounds % 2], False
        while not finished:
            assert starts < 4 * wanted
            starts += 1
            kind = chance.choice([*COUNTED, "moment"]) if killed.total() < wanted else None
            if kind == "moment":
                pid = start(lock, output)
                time.sleep(chance.uniform(0, duration / 2))
                os.kill(pid, signal.SIGKILL)
            else:
                pid = start(lock, output, kind, chance.randint(1, max(2, counts.get(kind, 0) // 4)))
            _, status = os.waitpid(pid, 0)
            finished = status == 0
            if not finished:
                assert os.WIFSIGNALED(status), (status, Path("log.txt").read_text()[-3000:])
                killed[kind or ""] += 1
                assert_whole(output)
        rounds += 1
    print(json.dumps({"killed": killed, "rounds": rounds, "starts": starts, "seconds": time.monotonic() - begun}))


if __name__ == "__main__":
    shutil.rmtree("undisturbed", ignore_errors=True)
    main(int(sys.argv[1]), int(sys.argv[2]))
