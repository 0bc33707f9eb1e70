"""Tracking: what waits for a server, what a run does while it waits, and what is sent in the end."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.commands import sync
from ratc_runtime.config.lock import read_lock
from ratc_runtime.tracking import delivery_thread
from ratc_runtime.tracking.delivery_thread import DeliveryThread
from ratc_runtime.tracking.interface import About, Backend, Record, reason
from ratc_runtime.tracking.journal import Journal
from ratc_runtime.tracking.mlflow import without_secrets
from ratc_runtime.tracking.tracker import Tracker

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment, results, run_alone, run_training, train_command, write_data, write_lock
from tests.helpers.servers import MlflowServer, failing_server, free_port


def point(step: int, **values: float) -> Record:
    return {"kind": "metrics", "step": step, "time": 1_700_000_000_000 + step, "values": values}


def about(folder: Path) -> About:
    return About("run", "name", "experiment", "", {"a": "1"}, {}, folder)


def drain(journal: Journal) -> list[Record]:
    found: list[Record] = []
    journal.deliver(found.extend, 2)
    return found


def test_a_journal_outlives_its_process(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j")
    first.append([point(1, loss=3.0), point(2, loss=2.0), {"kind": "tags", "values": {"a": "b"}}])
    records, token = first.peek(1)
    assert records == [point(1, loss=3.0)]
    first.done(token)
    with (tmp_path / "j.jsonl").open("ab") as file:
        file.write(b'{"kind": "metrics", "st')  # a crash in the middle of a line
    second = Journal(tmp_path / "j")
    # Trained again from a checkpoint: steps 1 and 2 are there already, `other` at step 2 is not.
    second.append([point(1, loss=3.0), point(2, loss=2.0, other=5.0), point(3, loss=1.0)])
    assert second.waiting() == 4
    assert drain(second) == [
        point(2, loss=2.0),
        {"kind": "tags", "values": {"a": "b"}},
        point(2, other=5.0),
        point(3, loss=1.0),
    ]
    assert second.waiting() == 0
    assert (tmp_path / "j.jsonl").stat().st_size == 0
    third = Journal(tmp_path / "j")
    third.append([point(3, loss=1.0)])
    assert third.waiting() == 0


def test_a_mark_behind_the_end_sends_again_instead_of_losing(tmp_path: Path) -> None:
    (tmp_path / "j.json").write_text('{"sent": 10000}')
    (tmp_path / "j.jsonl").write_text(json.dumps(point(1, loss=1.0)) + "\nno record\n")
    assert drain(Journal(tmp_path / "j")) == [point(1, loss=1.0)]


def test_a_journal_is_bounded_and_keeps_what_is_no_curve(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", limit=500)
    for step in range(100):
        journal.append([point(step, loss=1.0)])
    journal.append([{"kind": "status", "status": "FINISHED"}])
    assert (tmp_path / "j.jsonl").stat().st_size < 800
    assert 80 < journal.dropped < 100
    assert drain(journal)[-1] == {"kind": "status", "status": "FINISHED"}


def test_a_full_disk_leaves_records_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path / "j")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        journal.append([point(1, loss=1.0), point(2, loss=2.0)])
    assert journal.error is not None
    assert (tmp_path / "j.jsonl").read_bytes() == b""
    assert journal.waiting() == 2
    records, token = journal.peek(1)
    assert records == [point(1, loss=1.0)]
    journal.done(token)
    journal.append([point(3, loss=3.0)])  # there is room again
    assert journal.error is None
    assert drain(journal) == [point(2, loss=2.0), point(3, loss=3.0)]


def test_one_process_has_a_journal(tmp_path: Path) -> None:
    holder = Journal(tmp_path / "j")
    code = "import sys, pathlib; from ratc_runtime.tracking.journal import Journal; Journal(pathlib.Path(sys.argv[1]))"

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "j")],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    assert "Busy" in other().stderr
    holder.release()
    assert other().returncode == 0


class Held(Backend):
    """A backend whose server answers only when it is let."""

    name, switch, journal = "held", "held", True
    patience = patience_after_failure = 0.01

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked, self.answers = threading.Event(), threading.Event()
        self.errors: list[Exception] = []
        self.sent: list[Record] = []

    def send(self, records: list[Record]) -> None:
        self.asked.set()
        assert self.answers.wait(60)
        if self.errors:
            raise self.errors.pop(0)
        self.sent += records


def test_a_server_that_hangs_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_thread, "PERIOD", 0.01)
    backend = Held(about(tmp_path), {})
    journal = Journal(tmp_path / "j")
    delivery = DeliveryThread(backend, journal)
    delivery.put(point(1, loss=1.0))
    assert backend.asked.wait(60)
    # The thread is in a request that does not end. Everything goes on, and is on the disk.
    delivery.put(point(2, loss=2.0, bad=float("nan")))
    delivery.flush()
    assert [json.loads(line)["step"] for line in (tmp_path / "j.jsonl").read_text().splitlines()] == [1, 2]
    assert delivery.close() == 2
    assert backend.sent == []
    backend.answers.set()
    delivery._thread.join(60)
    assert backend.sent == [point(1, loss=1.0), point(2, loss=2.0)]
    assert journal.waiting() == 0


def test_a_server_that_fails_gets_everything_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(delivery_thread, "PERIOD", 0.01)
    monkeypatch.setattr(delivery_thread, "RETRY", (0.01, 0.01))
    backend = Held(about(tmp_path), {})
    backend.patience = backend.patience_after_failure = 60.0
    backend.errors = [ConnectionError("no route"), ConnectionError("no route")]
    backend.answers.set()
    delivery = DeliveryThread(backend, Journal(tmp_path / "j"))
    for step in range(1, 4):
        delivery.put(point(step, loss=1.0))
    while backend.errors:
        delivery._wake.set()
    assert delivery.close() == 0
    assert backend.sent == [point(step, loss=1.0) for step in range(1, 4)]
    said = capfd.readouterr()
    assert said.err.count("held does not take curves: ConnectionError: no route") == 1
    assert said.out.count("held answers again") == 1


class SafeAfterClose(Held):
    """A backend whose process keeps everything in memory until it is closed, and dies in the first close."""

    safe_after_close = True
    closes = 0

    def open(self) -> None:
        self.sent = []

    def close(self) -> None:
        self.closes += 1
        if self.closes == 1:
            raise ConnectionResetError("its process was killed")


def test_what_a_backend_loses_before_its_close_is_sent_again(tmp_path: Path) -> None:
    backend = SafeAfterClose(about(tmp_path), {})
    backend.patience = backend.patience_after_failure = 60.0
    backend.answers.set()
    journal = Journal(tmp_path / "j")
    delivery = DeliveryThread(backend, journal)
    for step in range(1, 4):
        delivery.put(point(step, loss=1.0))
    assert delivery.close() == 0
    assert backend.closes == 2
    assert backend.sent == [point(step, loss=1.0) for step in range(1, 4)]
    assert journal.waiting() == 0


def test_a_journal_keeps_what_was_handed_over_until_it_is_settled(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append([point(1, loss=1.0), point(2, loss=1.0)])
    found: list[Record] = []
    journal.deliver(found.extend, 1, settled=False)
    journal.deliver(found.extend, 1, settled=False)
    assert [record["step"] for record in found] == [1, 2]
    assert journal.waiting() == 2
    journal.again()
    journal.deliver(found.extend, 1, settled=False)
    assert [record["step"] for record in found] == [1, 2, 1, 2]
    journal.settle()
    assert journal.waiting() == 0
    assert (tmp_path / "j.jsonl").stat().st_size == 0


def test_without_a_journal_a_failure_is_the_end_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backend = Held(about(tmp_path), {})
    backend.patience = 60.0
    backend.errors = [OSError("no space")]
    backend.answers.set()
    delivery = DeliveryThread(backend, None)
    delivery.put(point(1, loss=1.0))
    assert delivery.close() == 0
    assert "held is off for the rest of this run: OSError: no space" in capfd.readouterr().err


def test_reasons_and_addresses_in_one_line() -> None:
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = ConnectionRefusedError(111, "Connection\nrefused")
    assert reason(wrapped) == "ConnectionRefusedError: [Errno 111] Connection refused"
    assert reason(KeyError("x")) == "KeyError: 'x'"
    assert without_secrets("https://me:secret@host:5000/path") == "https://host:5000/path"
    assert without_secrets("sqlite:////tmp/mlflow.db") == "sqlite:////tmp/mlflow.db"


def rows(store: Path, question: str) -> list[Any]:
    with sqlite3.connect(store) as connection:
        return connection.execute(question).fetchall()


POINTS = "select key, step, value from metrics where key not like 'system/%' order by key, step"


def tracker_of(folder: Path, **changes: Any) -> Tracker:
    lock = write_lock(folder / "compiled", **{"logging__mlflow": True, **changes})
    (folder / "out").mkdir(exist_ok=True)
    return Tracker(read_lock(lock), lock, folder / "out", True, "a" * 32)


def test_a_server_that_answers_500_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with failing_server(hangs=False) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        tracker = tracker_of(tmp_path)
        for step in range(5):
            tracker.log({"loss": 1.0}, step)
        tracker.close("FINISHED", [])
    said = capfd.readouterr().err
    assert said.count("MLflow does not take curves: ") == 1
    assert "not sent: 8 record(s) for MLflow" in said  # five points, the lock, that it runs, that it has ended


@pytest.mark.slow
def test_a_run_with_a_server_that_hangs_finishes_and_is_sent_later(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lock = write_lock(project / "compiled", logging__mlflow=True, training__epochs=2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with failing_server(hangs=True) as address:
        done = run_alone(lock, MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_TIMEOUT="1")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("MLflow does not take curves: ") == 1
        assert "Send them with: python -m ratc_runtime sync out" in done.stderr
        assert results(project / "out")["status"] == "finished"
        # The run's own server is asked, not the default.
        assert sync.main([str(project / "out")]) == 1
        said = capfd.readouterr().err
        assert f"error[R523]: MLflow at {address} has not taken everything" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/store.db")
    (journal,) = (project / "out/tracking").glob("*/mlflow.jsonl")
    waiting = journal.read_bytes()
    assert sync.main([str(project / "out")]) == 0
    first = rows(project / "store.db", POINTS)
    assert {key for key, _, _ in first} >= {"train/step_loss", "val/dice", "test/dice", "speed/loading_share"}
    assert [step for key, step, _ in first if key == "train/step_loss"] == [1, 2, 3, 4]
    assert rows(project / "store.db", "select status from runs") == [("FINISHED",)]
    # All of it once more, as after a crash before the mark was written.
    journal.write_bytes(waiting)
    assert sync.main([str(project / "out")]) == 0
    assert rows(project / "store.db", POINTS) == first
    assert rows(project / "store.db", "select count(*) from runs") == [(1,)]
    assert sync.main([str(project / "out")]) == 0
    assert "everything was sent already" in capfd.readouterr().out


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real MLflow server: killed in the middle, and started again, while a run logs."""
    monkeypatch.setattr(delivery_thread, "PERIOD", 0.05)
    monkeypatch.setattr(delivery_thread, "RETRY", (0.1, 0.1))
    server = MlflowServer(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    try:
        server.start()
        tracker = tracker_of(tmp_path)
        (delivery,) = tracker._deliveries
        journal = delivery.journal
        assert journal is not None

        def log(step: int) -> None:
            tracker.log({"loss": 1.0 / step}, step)
            tracker.flush()

        log(1)
        wait_until(lambda: journal.marks.get("loss") == 1 and journal.waiting() == 0)
        server.kill()
        for step in range(2, 6):
            log(step)
        wait_until(lambda: delivery._failing)
        assert journal.waiting() >= 4
        server.start()
        wait_until(lambda: journal.waiting() == 0)
        log(6)
        (tmp_path / "out/results.json").write_text("{}")
        tracker.close("FINISHED", [tmp_path / "out/results.json"])
        assert journal.waiting() == 0
        said = capfd.readouterr()
        assert "MLflow answers again" in said.out
        assert "not sent" not in said.err
        store = tmp_path / "server.db"
        assert rows(store, POINTS) == [("loss", step, 1.0 / step) for step in range(1, 7)]
        assert rows(store, "select status, name from runs") == [("FINISHED", "tiny")]
        params = dict(rows(store, "select key, value from params"))
        assert params["training.learning_rate"] == "0.003"
        kept = {path.name for path in tmp_path.glob("files/*/*/artifacts/*")}
        assert kept == {"lock.yaml", "results.json"}
        # The same run goes on: no second one, and points that are trained again are not doubled.
        again = tracker_of(tmp_path)
        again.log({"loss": 1.0 / 6}, 6)
        again.log({"loss": 1.0 / 7}, 7)
        again.close("FINISHED", [])
        assert rows(store, POINTS) == [("loss", step, 1.0 / step) for step in range(1, 8)]
        assert rows(store, "select count(*) from runs") == [(1,)]
    finally:
        server.kill()


def wait_until(true: Any) -> None:
    import time

    for _ in range(1200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_what_a_server_refuses_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = tracker_of(tmp_path)
    tracker.log({"good": 1.0}, 1)
    tracker.log({"no good name: ?*": 1.0}, 2)
    tracker.log({"good": 2.0, "infinite": float("inf"), "absent": None}, 3)
    tracker.note({"training.learning_rate": "another"})
    tracker.note({"added": "x"})
    tracker.tag({"git.commit": "0" * 40})
    wait_until(lambda: tracker._deliveries[0].journal.marks.get("system/cpu_utilization_percentage", -1) > 0)
    tracker.close("KILLED", [])
    store = tmp_path / "out/mlflow.db"
    assert rows(store, POINTS) == [("good", 1, 1.0), ("good", 3, 2.0)]
    params = dict(rows(store, "select key, value from params"))
    assert params["training.learning_rate"] == "0.003"
    assert params["added"] == "x"
    assert ("git.commit", "0" * 40) in rows(store, "select key, value from tags")
    system = {key for (key,) in rows(store, "select key from metrics where key like 'system/%'")}
    assert system >= {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"}
    said = capfd.readouterr().err
    assert said.count("warning: MLflow refuses metrics") == 1
    assert said.count("warning: MLflow refuses params") == 1
    assert rows(store, "select status from runs") == [("KILLED",)]


def test_names_that_mlflow_refuses_do_not_hold_the_curves_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The lock of own code has keys such as `parts.<module>`."""
    tracker = tracker_of(tmp_path, model__args={"parts.<module>": "sha256:0"})
    tracker.log({"loss": 1.0}, 1)
    tracker.close("FINISHED", [])
    store = tmp_path / "out/mlflow.db"
    assert rows(store, POINTS) == [("loss", 1, 1.0)]
    assert ("model.args.parts._module_", "sha256:0") in rows(store, "select key, value from params")
    assert "warning" not in capfd.readouterr().err


def test_sync_of_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sync.main([str(tmp_path)]) == 1
    assert f"error[R522]: {tmp_path} holds nothing to send" in capfd.readouterr().err
    tracker = tracker_of(tmp_path, logging__mlflow=True)
    command = [sys.executable, "-m", "ratc_runtime.commands.sync", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error[R522]: the run in" in done.stderr
    tracker.close("FINISHED", [])
    assert sync.main([str(tmp_path / "out")]) == 0
    assert "everything was sent already" in capfd.readouterr().out


def wandb_records(file: Path) -> Iterator[Any]:
    """Read a run's file: LevelDB's log format with wandb's header of seven bytes, records of protobuf."""
    from wandb.proto import wandb_internal_pb2

    content, at, pending = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            pending = b""
            yield record


def wandb_curve(file: Path, name: str) -> list[tuple[int, float]]:
    found = []
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            values = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            if name in values:
                found.append((record.history.step.num or values.get("_step"), values[name]))
    return found


@pytest.mark.slow
def test_weights_and_biases_offline_and_tensorboard_over_a_stop(project: Path) -> None:
    lock = write_lock(
        project / "compiled", logging__wandb=True, logging__tensorboard=True, logging__wandb_project="demo"
    )
    process = subprocess.Popen(
        train_command(lock),
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/2  train loss"):
            (project / "out/STOP").touch()
            break
    rest, errors = process.communicate(timeout=HANGS_S)
    assert process.returncode == 0, errors
    assert "stopped as asked" in rest
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert "wandb:" not in errors + done.stderr
    files = sorted((project / "out/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    steps = [step for file in files for step, _ in wandb_curve(file, "train/step_loss")]
    assert steps == [1, 2, 3, 4]
    records = list(wandb_records(files[0]))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
    assert run.project == "demo"
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["training"]["learning_rate"] == 0.003
    assert results(project / "out")["starts"]["number"] == 2

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(project / "out/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/step_loss")] == [1, 2, 3, 4]
    assert "lock/text_summary" in events.Tags()["tensors"]


def wandb_about(folder: Path) -> About:
    options = {"wandb_project": "p", "wandb_mode": "offline"}
    return About("run", "name", "experiment", "", {}, {}, folder, options=options)


def wandb_steps(folder: Path) -> list[int]:
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    return [step for file in files for step, _ in wandb_curve(file, "loss")]


@pytest.mark.slow
def test_weights_and_biases_loses_nothing_when_its_process_is_killed(tmp_path: Path) -> None:
    """In a process of its own: wandb's process is killed after it took two points and before the third."""
    code = f"""
import json, time, psutil
from pathlib import Path
from ratc_runtime.tracking import delivery_thread
from ratc_runtime.tracking.interface import About
from ratc_runtime.tracking.journal import Journal
from ratc_runtime.tracking.wandb import Wandb

delivery_thread.PERIOD, delivery_thread.RETRY = 0.05, (0.05, 0.05)
folder = Path({str(tmp_path)!r})
options = {{"wandb_project": "p", "wandb_mode": "offline"}}
about = About("run", "name", "experiment", "", {{}}, {{}}, folder, options=options)
backend, journal = Wandb(about, {{}}), Journal(folder / "j")
backend.load()
delivery = delivery_thread.DeliveryThread(backend, journal)
point = lambda step: {{"kind": "metrics", "step": step, "time": 0, "values": {{"loss": float(step)}}}}
delivery.put(point(1))
delivery.put(point(2))
delivery.flush()
while journal._handed == 0:
    time.sleep(0.05)
(core,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
core.kill()
core.wait()
delivery.put(point(3))
delivery.put({{"kind": "status", "status": "FINISHED"}})
print("left", delivery.close())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False, timeout=HANGS_S
    )
    assert "left 0" in done.stdout, done.stderr
    assert wandb_steps(tmp_path) == [1, 2, 3]


@pytest.mark.slow
def test_sync_writes_what_a_killed_run_left_for_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tracking" / "run"
    folder.mkdir(parents=True)
    wandb_about(tmp_path).write(folder / "about.json")
    journal = Journal(folder / "wandb")
    journal.append([point(1, loss=1.0), point(2, loss=0.5)])
    journal.release()
    handed: list[list[str]] = []

    def wandb_sync(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        handed.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(sync, "_run_wandb", wandb_sync)
    assert sync.main([str(tmp_path)]) == 0
    assert wandb_steps(tmp_path) == [1, 2]
    assert "2 record(s) written: Weights & Biases" in capfd.readouterr().out
    assert len(handed) == 1
    assert str(tmp_path / "wandb" / "offline-run-") in handed[0][-1]
    assert Journal(folder / "wandb").waiting() == 0


def test_a_tracker_that_is_not_installed_is_found_before_the_start(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "wandb").mkdir()  # what wandb leaves wherever it ran is no package
    lock = write_lock(tmp_path / "compiled", logging__wandb=True)
    code = (
        "import sys; from ratc_runtime import preflight;"
        "sys.path[:] = ['.', *(p for p in sys.path if 'site-packages' not in p)];"
        f"sys.exit(preflight.main([{str(lock)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "error[R524]: the lock tracks with Weights & Biases, which is not installed" in done.stderr


def test_online_without_an_account_or_a_server_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ratc_runtime.tracking import wandb

    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    told = About(
        "run", "name", "experiment", "", {}, {}, tmp_path, options={"wandb_project": "p", "wandb_mode": "online"}
    )
    assert wandb.Wandb(told, {}).mode == "offline"
    assert "the run is recorded offline" in capfd.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb.Wandb(told, {}).mode == "online"
    with pytest.raises(OSError, match="refused"):
        wandb.reach_server()
    with failing_server(hangs=False) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with pytest.raises(OSError, match="500"):
            wandb.reach_server()
