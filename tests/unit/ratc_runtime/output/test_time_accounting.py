"""Time accounting, the progress that is printed, and the provenance of a run's code."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.config.lock import read_lock
from ratc_runtime.engine import TorchEngine
from ratc_runtime.output import provenance, time_accounting
from ratc_runtime.output.progress import Eta, Reporter
from ratc_runtime.output.run_history import RunHistory
from ratc_runtime.output.time_accounting import TimeAccounting, duration
from ratc_runtime.training.run import Progress

from tests.helpers.lockfile import environment, results, run_alone, train_command, write_data, write_lock


class Watch:
    """A clock that passes only when it is told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_time_is_counted_once_under_its_kind() -> None:
    watch = Watch()
    account = TimeAccounting(Progress(), watch)

    def slow() -> Iterator[int]:
        for number in range(2):
            watch.time += 3
            yield number

    account.start_interval()
    for _ in account.waiting(slow()):
        watch.time += 1
        account.step(4, skipped=0)
    assert account.interval() == {"speed/samples_per_second": 1.0, "speed/loading_share": 0.75}
    account.lap("training")
    watch.time += 2
    account.lap("evaluation")
    watch.time += 1
    account.lap("checkpoint")
    watch.time += 1
    account.lap("other")
    record = account.record(steps=2, samples=8)
    assert record["seconds"] == {
        "training": 8.0,
        "evaluation": 2.0,
        "checkpoint": 1.0,
        "startup": 0.0,
        "setup": 0.0,
        "other": 1.0,
        "loading": 6.0,
        "total": 12.0,
    }
    assert record["shares"]["loading"] == 0.75
    assert sum(record["shares"][kind] for kind in time_accounting.KINDS) == pytest.approx(1)
    assert (record["samples_per_second"], record["steps_per_second"]) == (1.0, 0.25)
    # The time of an epoch is that of its training and evaluation.
    assert account.progress.epoch_seconds == 10.0


def test_process_age_is_measured_from_the_start_of_the_process() -> None:
    code = "import time; time.sleep(0.5); from ratc_runtime.output import time_accounting as a; print(a.process_age())"
    began = time.monotonic()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.5 <= age <= time.monotonic() - began + 0.02


def test_the_count_of_skipped_steps_continues_from_a_checkpoint() -> None:
    account = TimeAccounting(Progress(account={"skipped_steps": 2.0}))
    account.begin_skipping_from(7)  # DeepSpeed's own count, which came out of its checkpoint
    for skipped in (7, 8, 8, 10):
        account.step(1, skipped)
    assert account.record(4, 4)["skipped_steps"] == 5


def test_a_step_with_overflowing_gradients_is_counted_as_skipped(tmp_path: Path) -> None:
    lock = read_lock(write_lock(tmp_path, training__gradient_accumulation_steps=1))
    engine = TorchEngine(lock, torch.nn.Linear(2, 1))
    engine.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = engine.module.weight.clone()
    for factor, skipped in ((float("inf"), 1), (1.0, 1), (float("inf"), 2)):
        engine.backward((engine.module(torch.ones(1, 2)) * factor).sum())
        engine.update(None)
        assert engine.skipped_steps == skipped
        assert torch.equal(before, engine.module.weight) == (factor != 1.0)
        before = engine.module.weight.clone()


def test_starts_without_a_checkpoint_are_counted(tmp_path: Path) -> None:
    first = RunHistory(tmp_path, "print", False, None, 0, 0)
    second = RunHistory(tmp_path, "print", False, None, 0, 0)  # the first died before its first checkpoint
    assert second.run_id == first.run_id
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"half')
    third = RunHistory(tmp_path, "print", False, first.run_id, 2, 1)
    assert third.record()["number"] == 3
    assert third.record()["last"][-1]["epoch"] == 2
    assert third.tags("last.pt")["ratc.resumed_from"] == "last.pt after epoch 2, step 1"
    again = RunHistory(tmp_path, "print", True, None, 0, 0)
    assert again.run_id != first.run_id
    assert again.record()["number"] == 1
    other = RunHistory(tmp_path, "another", False, None, 0, 0)
    assert other.run_id != again.run_id


def test_durations_are_formatted_with_hours_and_days() -> None:
    assert [duration(seconds) for seconds in (-1, 0.4, 61, 3600, 86400 * 2 + 3661)] == [
        "0:00",
        "0:00",
        "1:01",
        "1:00:00",
        "2d 1:01:01",
    ]


def test_the_estimate_covers_the_whole_run() -> None:
    watch = Watch()
    eta = Eta(epochs=3, steps=4, now=watch)
    assert eta.seconds(0, 0) is None
    eta.start_epoch()
    watch.time += 50  # compiling, say
    eta.step(1)
    assert eta.seconds(0, 1) == 11 * 50
    for step in (2, 3, 4):
        watch.time += 2
        eta.step(step)
    assert eta.seconds(0, 4) == 8 * 2
    watch.time += 10  # evaluation and checkpoint
    eta.start_epoch()
    watch.time += 2
    eta.step(1)
    assert eta.seconds(1, 1) == 7 * 2 + 10


def lines(capsys: pytest.CaptureFixture[str], seconds: float, steps: int) -> list[str]:
    """What a log gets of two epochs whose steps take so many seconds."""
    watch = Watch()
    reporter = Reporter(True, 2, steps, 8, 1, {"dice": "Dice"}, watch)
    for epoch in range(2):
        reporter.start_epoch(epoch, 0)
        for step in range(1, steps + 1):
            watch.time += seconds
            reporter.step(epoch, step, 0.5, 1e-3)
        record = {"epoch": epoch + 1, "train_loss": 0.5, "val_loss": 0.5, "val_dice": 0.25, "seconds": 3.0}
        reporter.epoch(record, best=True)
    return capsys.readouterr().out.splitlines()


def test_a_log_of_fast_steps_has_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    fast = lines(capsys, 0.01, 5000)
    # Fifty seconds an epoch: five lines at once, then one each ten seconds, and the first and last of each epoch.
    assert len(fast) < 20
    assert fast[0].startswith("epoch 1/2  step 1/5000  loss 0.5000  lr 1.00e-03  800.0 samples/s  eta 1:4")
    assert any(line.startswith("epoch 2/2  step 1/5000 ") for line in fast)
    ends = [line for line in fast if "Dice" in line]
    assert ends[0] == "epoch 1/2  train loss 0.5000  val loss 0.5000  Dice 0.2500  0:03  eta 0:50  best so far"
    assert len(ends) == 2
    slow = lines(capsys, 60.0, 10)
    assert len(slow) == 22


def test_other_ranks_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(False, 1, 1, 8, 1, {})
    reporter.start_epoch(0, 0)
    reporter.step(0, 1, 0.5, 1e-3)
    reporter.say("hello")
    reporter.close()
    assert capfd.readouterr() == ("", "")


def test_unprintable_characters_are_replaced_on_an_ascii_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Reporter(True, 1, 1, 8, 1, {}).say("Größe")
    assert raw.getvalue() == b"Gr??e\n"


def test_names_give_no_commands_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(True, 1, 1, 8, 1, {}).say("a\x1b[31mb\u202e: rat")
    assert capsys.readouterr().out == "a\\x1b[31mb\\u202e: rat\n"


def test_short_epochs_print_one_line_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch()
    reporter = Reporter(True, 200, 1, 8, 1, {"dice": "Dice"}, watch)
    for epoch in range(200):
        reporter.start_epoch(epoch, 0)
        watch.time += 0.1
        reporter.step(epoch, 1, 0.5, 1e-3)
        record = {"epoch": epoch + 1, "train_loss": 0.5, "val_loss": 0.5, "val_dice": 0.25, "seconds": 0.1}
        reporter.epoch(record, best=epoch == 52)
    told = [line for line in capsys.readouterr().out.splitlines() if "train loss" in line]
    numbers = [int(line.split()[1].split("/")[0]) for line in told]
    # Twenty seconds: the first five at once, then one a second, and the last.
    assert numbers[:5] == [1, 2, 3, 4, 5]
    assert 20 <= len(numbers) <= 27
    assert numbers[-1] == 200
    (best,) = [line for line in told if "best so far" in line]
    assert best.endswith("best so far: epoch 53")


def on_a_terminal(command: list[str], folder: Path, **variables: str) -> str:
    """Run a command on a terminal of 80 columns; return all that it showed there."""
    main, side = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(command, cwd=folder, env=environment(**variables), stdout=side, stderr=side, stdin=side)
    os.close(side)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # Linux's way to say that nobody has it open any more
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait(60) == 0, shown.decode(errors="replace")
    return shown.decode()


BAR = """
import time
from ratc_runtime.output.progress import Reporter
reporter = Reporter(True, 2, 30, 8, 10, {"dice": "Dice"})
for epoch in range(2):
    reporter.start_epoch(epoch, 0)
    for step in range(1, 31):
        time.sleep(0.02)
        reporter.step(epoch, step, 0.5, 1e-3)
    record = {"epoch": epoch + 1, "train_loss": 0.5, "val_loss": 0.5, "val_dice": 0.25, "seconds": 3.0}
    reporter.epoch(record, best=True)
"""


@pytest.mark.parametrize(
    ("variables", "coloured", "bar"),
    [
        ({"TERM": "xterm", "PYTHONUTF8": "1", "NO_COLOR": ""}, True, "█"),
        ({"TERM": "xterm", "PYTHONUTF8": "1", "NO_COLOR": "1"}, False, "█"),
        ({"TERM": "xterm", "PYTHONIOENCODING": "ascii", "NO_COLOR": ""}, True, "#"),
        ({"TERM": "dumb"}, False, ""),
    ],
    ids=["colour", "no-colour", "ascii", "dumb"],
)
def test_the_progress_bar_is_redrawn_on_a_terminal(
    tmp_path: Path, variables: dict[str, str], coloured: bool, bar: str
) -> None:
    shown = on_a_terminal([sys.executable, "-c", BAR], tmp_path, **variables)
    assert ("\033[32mbest so far\033[0m" in shown) == coloured
    parts = [part for part in shown.replace("\n", "\r").split("\r") if part.strip()]
    bars = [part for part in parts if "%" in part]
    if not bar:
        assert not bars
        assert any(part.startswith("epoch 1/2  step 1/30  loss") for part in parts)
        return
    assert any(bar in part for part in bars)
    assert all(len(part.replace("\033[A", "")) <= 80 for part in bars)
    assert any("eta 0:0" in part for part in bars)
    assert not any(part.startswith("epoch 1/2  step") for part in parts)  # the bar says it


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment()).stdout.strip()


def test_provenance_records_commit_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.of_folder(tmp_path) is None
    git(tmp_path, "init", "-q", "-b", "trunk")
    assert provenance.of_folder(tmp_path) is None  # nothing was committed yet
    (tmp_path / "own_net.py").write_text("def net(): ...\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    clean = {"commit": commit, "branch": "trunk", "dirty": False}
    assert provenance.of_folder(tmp_path) == clean
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/results.json").write_text("{}")
    assert provenance.of_folder(tmp_path) == clean  # what a run writes does not make it dirty
    lock = read_lock(
        write_lock(
            tmp_path / "compiled",
            model={"name": "own_net:net", "multi_scale": False, "args": {}, "attention_memory": "full"},
            data__dataset="new_data:open_data",
        )
    )
    (tmp_path / "new_data.py").write_text("def open_data(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import new_data  # type: ignore[import-not-found]  # noqa: F401
    import own_net  # type: ignore[import-not-found]  # noqa: F401

    found = provenance.of_run(lock, tmp_path)
    # A module that no commit holds is no clean state.
    assert found == {"spec": clean, "own_net": clean, "new_data": {**clean, "dirty": True}}
    (tmp_path / "own_net.py").write_text("def net(): return 1\n")
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    dirty = provenance.of_folder(tmp_path)
    assert dirty == {**clean, "dirty": True}
    tags = provenance.tags({"spec": clean, "own_net": dirty})
    assert tags["git.commit"] == tags["mlflow.source.git.commit"] == commit
    assert (tags["git.dirty"], tags["git.own_net.dirty"]) == ("false", "true")
    monkeypatch.setenv("PATH", "")
    assert provenance.of_folder(tmp_path) is None


@pytest.mark.slow
def test_a_run_records_its_times_and_prints_their_table(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    lock = write_lock(tmp_path / "compiled", training__epochs=2)
    began = time.monotonic()
    done = run_alone(lock)
    lived = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = results(tmp_path / "out")
    seconds = found["account"]["seconds"]
    assert seconds["total"] == pytest.approx(sum(seconds[kind] for kind in time_accounting.KINDS))
    assert found["wall_seconds"] == seconds["total"]
    assert found["train_seconds"] == seconds["training"]
    assert all(seconds[kind] > 0 for kind in ("training", "evaluation", "checkpoint", "startup", "setup", "loading"))
    assert seconds["loading"] < seconds["training"]
    assert found["account"]["steps"] == 4
    assert found["samples_per_second"] == pytest.approx(16 / seconds["training"])
    assert found["starts"]["number"] == 1
    table = done.stdout[done.stdout.index("best epoch  ") :]
    heads = [line.split("  ")[0] for line in table.splitlines() if line and not line.startswith(" ")]
    # Of the whole life of the process only its very end, after results.json, is not counted. On busy cores it is long.
    assert 0.3 * lived < seconds["total"] < lived
    assert heads == ["best epoch", "start-up", "time", "speed", "steps", "samples", "peak memory", "written", "tracked"]
    assert "4 optimizer steps, 0 of them skipped; 1 start" in table
    assert "nowhere" in table
    assert train_command(lock)[0] == sys.executable
