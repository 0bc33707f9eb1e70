"""The watchdog: announced phases, heartbeats, and real processes that hang in different ways."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from ratc_runtime.config.lock import read_lock
from ratc_runtime.data.loading import Loader
from ratc_runtime.distributed import heartbeat, phases, watchdog
from ratc_runtime.distributed.heartbeat import Beat, Heartbeats, process_start_time
from ratc_runtime.distributed.phases import phase
from ratc_runtime.distributed.watchdog import Watchdog
from ratc_runtime.distributed.world import World, group_timeout
from ratc_runtime.engine import TorchEngine
from ratc_runtime.tasks import make_task
from ratc_runtime.training.step import training_step

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, lock_content, write_lock


def seen_by_a_thread() -> phases.Phase:
    """What the watchdog would see of this, the main thread, right now."""
    found: list[phases.Phase] = []
    thread = threading.Thread(target=lambda: found.append(phases.look()))
    thread.start()
    thread.join()
    return found[0]


class Looks(torch.autograd.Function):
    """The identity, whose backward looks."""

    seen: ClassVar[list[phases.Phase]] = []

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        Looks.seen.append(seen_by_a_thread())
        return gradient


class Samples:
    seen: ClassVar[list[phases.Phase]] = []

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        Samples.seen.append(seen_by_a_thread())
        return {"image": torch.zeros(1, 4, 4), "target": torch.zeros(1, 4, 4)}


def test_the_watchdog_knows_the_phase_of_the_main_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = read_lock(write_lock(tmp_path))
    model, forward = torch.nn.Conv2d(1, 1, 1), []

    def looks(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        forward.append(seen_by_a_thread())
        return Looks.apply(output).mean()  # type: ignore[no-any-return, no-untyped-call]

    loader = Loader(Samples(), [[0]], lock, 0, make_task(lock).collate)
    batches = ((batch.image, batch.target) for batch in loader)
    engine = TorchEngine(lock, model)
    training_step(engine, looks, batches, 1, 0.1, None)
    assert [found.name for found in (*Samples.seen, *forward, *Looks.seen)] == ["loader", "forward", "backward"]
    assert [found.waiting for found in (*Samples.seen, *forward, *Looks.seen)] == [False, False, True]
    assert Samples.seen[0].stack.count('test_watchdog.py", line') >= 1
    assert "in __getitem__" in Samples.seen[0].stack

    collective: list[phases.Phase] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _: collective.append(seen_by_a_thread()))
    World(0, 2, torch.device("cpu")).sum(torch.zeros(1))
    assert [(found.name, found.waiting) for found in collective] == [("collective", True)]
    assert seen_by_a_thread().name == "starting or ending"


def test_every_phase_is_announced_by_some_code() -> None:
    sources = "".join(path.read_text() for path in Path(phases.__file__).parents[1].rglob("*.py"))
    announced = set(re.findall(r'(?:@|, |^ *with )phase\("(\w+)"\)', sources, re.MULTILINE))
    assert announced == {*get_args(phases.Part), *get_args(phases.Work)}


def test_a_nested_phase_restores_the_outer_one() -> None:
    with phase("training"), phase("forward"):
        assert seen_by_a_thread().name == "forward"
        with phase("evaluation"):
            assert seen_by_a_thread().name == "evaluation"
            with phase("loader"):
                assert seen_by_a_thread().name == "evaluation: loader"
            with pytest.raises(ValueError, match="bad sample"), phase("checkpoint"):
                raise ValueError("bad sample")
            assert seen_by_a_thread().name == "evaluation"
        assert seen_by_a_thread().name == "forward"
    assert seen_by_a_thread().name == "starting or ending"


def test_phases_of_other_threads_are_ignored() -> None:
    """A checkpoint that is written in the background is not what the main thread does."""
    begun, done = threading.Event(), threading.Event()

    def write() -> None:
        with phase("checkpoint"):
            begun.set()
            done.wait(30)

    thread = threading.Thread(target=write)
    with phase("training"):
        thread.start()
        begun.wait(30)
        assert seen_by_a_thread().name == "training"
        done.set()
        thread.join()


def test_a_collective_inside_torch_is_recognised_on_the_stack() -> None:
    found: list[phases.Phase] = []
    code = compile("def broadcast(look):\n    look()", "/site/torch/distributed/distributed_c10d.py", "exec")
    space: dict[str, Any] = {}
    exec(code, space)
    with phase("forward"):
        space["broadcast"](lambda: found.append(seen_by_a_thread()))
    assert [(one.name, one.waiting) for one in found] == [("collective", True)]


def test_the_environment_overrides_the_timeout_of_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = read_lock(write_lock(tmp_path / "a", parallel__timeout_seconds=90))
    assert watchdog.limit(lock, {}) == 90
    assert watchdog.limit(lock, {"RATC_TIMEOUT_SECONDS": "7.5"}) == 7.5
    assert watchdog.limit(lock, {"RATC_TIMEOUT_SECONDS": "0"}) is None
    for wrong in ("soon", "-1", "nan", "inf"):
        assert watchdog.limit(lock, {"RATC_TIMEOUT_SECONDS": wrong}) == 90
        assert f"RATC_TIMEOUT_SECONDS='{wrong}' is not a number of seconds" in capsys.readouterr().err
    found = group_timeout(lock)
    assert found is not None
    assert found.total_seconds() > 90, "torch would speak first, and cannot say which rank it is"
    never = read_lock(write_lock(tmp_path / "b", parallel__timeout_seconds=None))
    assert watchdog.limit(never, {}) is None
    assert group_timeout(never) is None
    monkeypatch.setenv("RATC_TIMEOUT_SECONDS", "5")
    assert group_timeout(never) is not None


def beat(rank: int, pid: int, **changes: Any) -> Beat:
    values: dict[str, Any] = {
        "rank": rank,
        "host": os.uname().nodename,
        "pid": pid,
        "born": process_start_time(pid),
        "count": 1,
        "marks": 1,
        "seconds": 0.0,
        "phase": "forward",
        "waiting": False,
        "stack": "",
    }
    return Beat(**{**values, **changes})


def test_heartbeats_of_another_start_are_ignored(tmp_path: Path) -> None:
    first = Heartbeats(tmp_path, "a", 0)
    first.write(beat(0, os.getpid()))
    first.end("R507, the loss is not finite")
    again, other = Heartbeats(tmp_path, "a", 1), Heartbeats(tmp_path, "b", 1)
    assert again.ended() is None, "what an earlier start said of its end is none of this one's"
    assert other.ended() is None
    assert other.read(0) is None, "another run that is refused this folder must not be heard"
    assert again.read(0) == beat(0, os.getpid())
    first.end("R506, train4 cannot be loaded")
    assert again.ended() == "rank 0: R506, train4 cannot be loaded"
    (first.folder / "rank-0.json").write_text('{"rank": 0')
    assert again.read(0) is None, "half a file says nothing"


def test_a_clean_end_leaves_no_heartbeat_file(tmp_path: Path) -> None:
    for rank in (0, 1):
        Watchdog(60, tmp_path, rank, 2, range(2)).start().close()
    assert list(tmp_path.iterdir()) == []


def test_heartbeats_that_cannot_be_written_do_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    hearts = Heartbeats(tmp_path / "out", "a", 0)
    hearts.write(beat(0, os.getpid()))
    hearts.end("anything")
    hearts.dump("stacks")
    hearts.close()
    assert (hearts.read(0), hearts.ended()) == (None, None)


def test_a_killed_local_rank_is_reported_and_an_ended_one_is_not(tmp_path: Path) -> None:
    dog = Watchdog(60, tmp_path, 0, 3, range(3))
    assert dog.hearts is not None
    others = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    hearts = [Heartbeats(tmp_path, dog.hearts.folder.name, rank) for rank in (1, 2)]
    for rank, (process, own) in enumerate(zip(others, hearts, strict=True), start=1):
        own.write(beat(rank, process.pid))
    assert dog._killed_here() is None
    hearts[0].close()  # as a rank does before it ends
    for process in others:
        process.kill()
        process.wait()
    assert dog.lost() == f"rank 2 on {os.uname().nodename} (process {others[1].pid}) was killed, last seen in `forward`"
    # And all the others are told, on whatever machine they are.
    elsewhere = json.loads((dog.hearts.folder / "ended.json").read_text())
    assert "rank 2 on" in elsewhere["message"]


def test_a_reused_process_id_is_not_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    heartbeat.kill(beat(1, process.pid, born="12"))
    assert process.poll() is None, "another process has that number now"
    os.kill(process.pid, signal.SIGSTOP)
    heartbeat.kill(beat(1, process.pid))
    assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize("several", [False, True])
def test_time_while_stopped_does_not_count_towards_the_timeout(tmp_path: Path, several: bool) -> None:
    dog = Watchdog(60, tmp_path, 0, 2 if several else 1, range(2))
    dog.seconds = dog.usual
    dog._count_time(4)
    assert dog._stalled == 4
    watchdog.mark()
    dog._count_time(4)
    assert dog._stalled == 0


def test_the_first_step_has_a_longer_timeout(tmp_path: Path) -> None:
    dog, place = Watchdog(60, tmp_path, 0, 1, range(1)), "in epoch 1, step 1"
    dog._count_time(1)
    assert dog.seconds == watchdog.FIRST
    dog.follow(lambda: place)
    dog._count_time(1)
    assert dog.seconds == watchdog.FIRST
    place = "in epoch 1, step 2"
    dog._count_time(1)
    assert dog.seconds == 60


@pytest.mark.parametrize(
    ("marks", "waiting", "heard", "expected"),
    [
        ((5, 5, 5), (True, False, True), {1, 2}, [1]),
        ((5, 5, 5), (True, True, True), {1}, [2]),
        ((5, 5, 4), (True, True, True), {1, 2}, [2]),
        ((5, 5, 5), (True, True, True), {1, 2}, [0, 1, 2]),
        ((5, 5, 5), (True, False, True), {1}, [1, 2]),
    ],
    ids=["works", "silent", "behind", "none stands out", "both"],
)
def test_the_ranks_that_hang_are_named(
    tmp_path: Path, marks: tuple[int, ...], waiting: tuple[bool, ...], heard: set[int], expected: list[int]
) -> None:
    dog = Watchdog(60, tmp_path, 0, 3, range(3))
    dog._heard = dict.fromkeys(heard, dog._count)
    for rank in range(3):
        dog._beats[rank] = beat(rank, os.getpid(), marks=marks[rank], waiting=waiting[rank])
    assert dog._stuck_ranks() == expected


def test_a_late_heartbeat_counts_and_a_stopped_one_does_not(tmp_path: Path) -> None:
    dog = Watchdog(8, tmp_path, 0, 2, range(2))
    dog.seconds = dog.usual
    assert dog.hearts is not None
    other = Heartbeats(tmp_path, dog.hearts.folder.name, 1)
    # Two looks between two beats see the same one: a busy machine, not a rank that does not answer.
    for count, answers in ((1, False), (1, False), (2, True), (2, True), (2, True), (3, True)):
        other.write(beat(1, os.getpid(), count=count))
        dog._count_time(dog.tick)
        dog._read_beats([1])
        assert (1 in dog._alive_ranks()) == answers, count
    for look in range(1, 8):
        dog._count_time(dog.tick)
        dog._read_beats([1])
        assert (1 in dog._alive_ranks()) == (look <= watchdog.LOOKS), look


def hanging(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code below a watchdog that loses patience after a moment."""
    script = (
        "import time\nfrom pathlib import Path\nfrom ratc_runtime.distributed import watchdog\n"
        "watchdog.FIRST = watchdog.GROUP_MARGIN = 0.0\n"
        f"watchdog.Watchdog(1.0, Path({str(folder)!r}), 0, 1, range(1)).start()\n{code}"
    )
    return subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=HANGS_S
    )


def test_r525_ends_a_hanging_process_with_its_stacks(tmp_path: Path) -> None:
    done = hanging(tmp_path, "def wait_for_ever():\n    time.sleep(1000)\nwait_for_ever()")
    assert done.returncode == 1
    assert "error[R525]: no progress for 1 s, in `starting or ending`" in done.stderr
    assert "in wait_for_ever" in done.stderr
    assert "thread MainThread" in done.stderr
    assert "RATC_TIMEOUT_SECONDS" in done.stderr


def test_a_process_that_makes_progress_is_not_ended(tmp_path: Path) -> None:
    done = hanging(tmp_path, "for _ in range(60):\n    time.sleep(0.05)\n    watchdog.mark()\nprint('done')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_code_that_holds_the_interpreter_lock_is_ended(tmp_path: Path) -> None:
    """The watchdog's own thread cannot run then; faulthandler's timer can."""
    done = hanging(tmp_path, "import ctypes\nctypes.PyDLL(None).sleep(1000)")
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert 'File "<string>", line 7 in <module>' in done.stderr


def test_an_error_in_the_watchdog_does_not_end_the_run(tmp_path: Path) -> None:
    code = "watchdog.phases.look = None\nwatchdog.Watchdog._count_time = None\ntime.sleep(3)\nprint('done')"
    done = hanging(tmp_path, code)
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert "the watchdog has ended, and training goes on without it: TypeError" in done.stderr


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "failed"])
def test_a_rank_that_waits_for_a_dead_rank_is_ended(tmp_path: Path, killed: bool) -> None:
    """As over NCCL, where a collective goes on waiting for a process that is no more."""
    variables = environment(MASTER_ADDR="localhost", MASTER_PORT="1")
    other = Heartbeats(tmp_path, heartbeat.start_name(variables), 1)
    process = subprocess.Popen(["sleep", "60"])
    other.write(beat(1, process.pid))
    script = (
        "import time\nfrom pathlib import Path\nfrom ratc_runtime.distributed import watchdog\nwatchdog.GRACE = 0.5\n"
        f"watchdog.Watchdog(1.0, Path({str(tmp_path)!r}), 0, 2, range(2)).start()\nprint('in', flush=True)\n"
        "time.sleep(1000)"
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", script], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "in\n"
    while heartbeat_of(tmp_path, variables) is None:
        assert waiting.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)  # it has seen the other one alive
    if killed:
        process.kill()
        process.wait()
    else:
        other.end("R506, train4 cannot be loaded")
        other.close()
    _, said = waiting.communicate(timeout=HANGS_S)
    process.kill()
    assert waiting.returncode == 1
    assert "error[R514]: rank 0 has lost the other processes" in said
    reason = "was killed, last seen in `forward`" if killed else "rank 1: R506, train4 cannot be loaded"
    assert reason in said
    assert "this process was in `starting or ending` and was ended" in said


def heartbeat_of(folder: Path, variables: dict[str, str]) -> Beat | None:
    path = folder / heartbeat.FOLDER / heartbeat.start_name(variables) / "rank-0.json"
    return Beat(**json.loads(path.read_bytes())) if path.exists() else None


def test_a_loader_process_prints_its_stack_on_request(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, signal\n"
        "def load():\n    stacks.answer_when_asked()\n    time.sleep(1000)\n"
        "def other():\n    time.sleep(1000)\n"
        "context = multiprocessing.get_context('fork')\n"
        "children = [context.Process(target=one, daemon=True) for one in (load, other)]\n"
        "[child.start() for child in children]\n"
        "time.sleep(0.3)\nstacks.ask_loader_processes('of rank 0')\ntime.sleep(0.3)\n"
        "print([child.is_alive() for child in children])\n"
        "[child.kill() for child in children]\n"
    )
    script = f"import time\nfrom ratc_runtime.distributed import stacks\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.stdout == "[True, True]\n", "a process that does not know the signal must not be sent it"
    assert done.stderr.count("loader process") == 1
    assert "in load" in done.stderr


def test_a_lock_with_a_timeout_of_zero_is_refused(tmp_path: Path, refuse: Callable[[Path], str]) -> None:
    content = lock_content(parallel__timeout_seconds=0)
    path = tmp_path / "lock.yaml"
    path.write_text(json.dumps(content))
    assert "the lock's parallel.timeout_seconds is 0, expected more than 0" in refuse(path)


@pytest.fixture
def refuse() -> Callable[[Path], str]:
    from tests.unit.ratc_runtime.config.test_lock import refuse as found

    return found
