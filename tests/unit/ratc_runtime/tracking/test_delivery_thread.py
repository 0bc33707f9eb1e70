"""The delivery thread: a server that hangs or fails blocks nothing, and gets all records later."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from ratc_runtime.tracking import delivery_thread
from ratc_runtime.tracking.delivery_thread import DeliveryThread
from ratc_runtime.tracking.interface import About, Backend, Record, reason
from ratc_runtime.tracking.journal import Journal
from ratc_runtime.tracking.mlflow import without_secrets

from tests.helpers.servers import point


def about(folder: Path) -> About:
    return About("run", "name", "experiment", "", {"a": "1"}, {}, folder)


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


def test_a_hanging_server_does_not_block_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_failing_server_gets_all_records_later(
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


def test_records_lost_before_the_close_of_a_backend_are_sent_again(tmp_path: Path) -> None:
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


def test_a_journal_keeps_delivered_records_until_they_are_confirmed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.append([point(1, loss=1.0), point(2, loss=1.0)])
    found: list[Record] = []
    journal.deliver(found.extend, 1, settled=False)
    journal.deliver(found.extend, 1, settled=False)
    assert [record["step"] for record in found] == [1, 2]
    assert journal.waiting() == 2
    journal.resend()
    journal.deliver(found.extend, 1, settled=False)
    assert [record["step"] for record in found] == [1, 2, 1, 2]
    journal.mark_sent()
    assert journal.waiting() == 0
    assert (tmp_path / "j.jsonl").stat().st_size == 0


def test_without_a_journal_a_failure_turns_the_backend_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backend = Held(about(tmp_path), {})
    backend.patience = 60.0
    backend.errors = [OSError("no space")]
    backend.answers.set()
    delivery = DeliveryThread(backend, None)
    delivery.put(point(1, loss=1.0))
    assert delivery.close() == 0
    assert "held is off for the rest of this run: OSError: no space" in capfd.readouterr().err


def test_reasons_are_one_line_and_addresses_hide_passwords() -> None:
    wrapped = ValueError("wrapped")
    wrapped.__cause__ = ConnectionRefusedError(111, "Connection\nrefused")
    assert reason(wrapped) == "ConnectionRefusedError: [Errno 111] Connection refused"
    assert reason(KeyError("x")) == "KeyError: 'x'"
    assert without_secrets("https://me:secret@host:5000/path") == "https://host:5000/path"
    assert without_secrets("sqlite:////tmp/mlflow.db") == "sqlite:////tmp/mlflow.db"
