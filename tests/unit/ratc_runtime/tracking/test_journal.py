"""The journal of records for a server: it outlives its process, is bounded, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ratc_runtime.tracking.interface import Record
from ratc_runtime.tracking.journal import Journal

from tests.helpers.lockfile import environment
from tests.helpers.servers import point


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


def test_an_invalid_mark_sends_records_again_instead_of_losing_them(tmp_path: Path) -> None:
    (tmp_path / "j.json").write_text('{"sent": 10000}')
    (tmp_path / "j.jsonl").write_text(json.dumps(point(1, loss=1.0)) + "\nno record\n")
    assert drain(Journal(tmp_path / "j")) == [point(1, loss=1.0)]


def test_a_bounded_journal_drops_only_points_of_curves(tmp_path: Path) -> None:
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


def test_a_journal_is_held_by_one_process(tmp_path: Path) -> None:
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
