"""Tracking while a server hangs or dies, and the records that are sent in the end."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.commands import sync
from ratc_runtime.config.lock import read_lock
from ratc_runtime.tracking import delivery_thread
from ratc_runtime.tracking.tracker import Tracker

from tests.helpers.lockfile import environment, results, run_alone, write_lock
from tests.helpers.servers import MlflowServer, failing_server
from tests.helpers.waiting import wait_until


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
    assert "not sent: 8 records for MLflow" in said  # five points, the lock, that it runs, that it has ended


@pytest.mark.slow
def test_a_run_with_a_hanging_server_finishes_and_is_sent_later(
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
def test_a_server_killed_and_restarted_receives_all_records(
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
        wait_until(lambda: journal.marks.get("loss") == 1 and journal.waiting() == 0, "the record is delivered")
        server.kill()
        for step in range(2, 6):
            log(step)
        wait_until(lambda: delivery._failing, "delivery fails")
        assert journal.waiting() >= 4
        server.start()
        wait_until(lambda: journal.waiting() == 0, "all is delivered")
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


def test_a_refused_record_does_not_block_others(
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
    journal = tracker._deliveries[0].journal
    wait_until(lambda: journal.marks.get("system/cpu_utilization_percentage", -1) > 0, "system metrics are delivered")
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


def test_parameter_names_that_mlflow_refuses_do_not_block_curves(
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


def test_sync_without_records(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
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
