"""A journal of records on the disk until they are sent: synced JSON lines, and the position of the sent ones.

A run that dies leaves a file, which the next start, or `ratc_runtime sync`, sends from that position. Records may be
sent twice (after a crash between sending and saving the position), but are never lost. So sending must be idempotent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.output import atomic
from ratc_runtime.tracking.interface import Record

#: Unsent records beyond this are not kept: some 200,000 points of six curves.
MAX_BYTES = 64 * 2**20
#: Records that wait in memory if the disk fails.
MAX_IN_MEMORY = 10_000


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_record(value: Any) -> bool:
    """Return whether a line of a journal is a valid record. Metrics need a step and a mapping of values."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    return value["kind"] != "metrics" or (_is_count(value.get("step")) and isinstance(value.get("values"), dict))


class Busy(Exception):
    """Another process has locked this journal."""


class Journal:
    """`PATH.jsonl` with the records and `PATH.json` with the state: the sent position, and the backend's own values.

    `marks` hold the last step of each metric: a run that goes back to a checkpoint repeats steps, and servers would
    show both points. Raises Busy while another process has the journal, until that calls `release` or ends.
    """

    def __init__(self, path: Path, limit: int = MAX_BYTES) -> None:
        self.path, self.limit = path.with_suffix(".jsonl"), limit
        self.state_path = path.with_suffix(".json")
        self.dropped = 0
        self.error: OSError | None = None
        # Before any repair: the other process may be in the middle of a line.
        self._descriptor = self._take()
        self._memory: deque[Record] = deque(maxlen=MAX_IN_MEMORY)
        self._lock = threading.Lock()
        self.state: dict[str, Any] = self._read_state()
        self.marks: dict[str, int] = self.state.setdefault("marks", {})
        self._repair()
        #: Bytes that were handed to the backend; those from `sent` to here are not safe there yet.
        self._handed = self.sent
        for record in self._scan(self.sent)[0]:
            self._mark(record)

    def _take(self) -> int | None:
        """Return the locked file; None if the file system has no locks. Raises Busy if another process has it."""
        try:
            handle = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        except OSError:
            return None
        try:
            # Not flock: loader processes would inherit that lock, and hold it for some time after a kill.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(handle)
            raise Busy(str(self.path)) from None
        except OSError:
            os.close(handle)
            return None
        return handle

    @property
    def sent(self) -> int:
        """The number of sent bytes of the file."""
        return int(self.state.get("sent", 0))

    def _read_state(self) -> dict[str, Any]:
        try:
            with open_regular(self.state_path) as file:
                content = json.loads(file.read(MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        # The folder is untrusted: with an invalid position, nothing counts as sent.
        if not _is_count(content.get("sent", 0)):
            del content["sent"]
        marks = content.get("marks")
        content["marks"] = {
            name: step for name, step in (marks if isinstance(marks, dict) else {}).items() if _is_count(step)
        }
        return content

    def _repair(self) -> None:
        """Cut off an incomplete last line from a crash, and reset a position behind the end."""
        try:
            open_regular(self.path).close()  # a pipe or a device would not end
            with self.path.open("r+b") as file:
                content = file.read()
                whole = content.rfind(b"\n") + 1
                if whole != len(content):
                    file.truncate(whole)
        except OSError:
            whole = 0
        if self.sent > whole:
            self.state["sent"] = 0

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def append(self, records: Iterable[Record]) -> None:
        """Write records and sync them. Metrics at steps that were recorded before are left out.

        If the file is at its limit, metrics are counted in `dropped` instead. If writing fails, records wait in memory
        and `error` holds the reason.
        """
        with self._lock:
            new = [kept for record in records if (kept := self._new(record)) is not None]
            if not new and not self._memory:
                return
            if self._size() - self.sent >= self.limit:
                self._mark_sent()
            room = self._size() - self.sent < self.limit
            if not room:
                self.dropped += sum(record["kind"] == "metrics" for record in new)
                new = [record for record in new if record["kind"] != "metrics"]
            self._memory.extend(new)
            try:
                self._write(list(self._memory))
            except OSError as error:
                self.error = error
                return
            self.error = None
            self._memory.clear()

    def _write(self, records: list[Record]) -> None:
        text = "".join(json.dumps(record, separators=(",", ":"), default=str) + "\n" for record in records)
        before = self._size()
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, before)
            raise

    def _new(self, record: Record) -> Record | None:
        if record["kind"] != "metrics":
            return record
        step = record["step"]
        values = {name: value for name, value in record["values"].items() if step > self.marks.get(name, -1)}
        if not values:
            return None
        kept = {**record, "values": values}
        self._mark(kept)
        return kept

    def _mark(self, record: Record) -> None:
        if record.get("kind") == "metrics":
            for name in record["values"]:
                self.marks[name] = max(record["step"], self.marks.get(name, -1))

    def _scan(self, start: int, most: int | None = None) -> tuple[list[Record], int]:
        """Return records from a byte on, and the byte after them. Invalid lines are skipped."""
        records: list[Record] = []
        try:
            with open_regular(self.path) as file:
                file.seek(start)
                while most is None or len(records) < most:
                    line = file.readline()
                    if not line.endswith(b"\n"):
                        break
                    start += len(line)
                    with contextlib.suppress(ValueError, RecursionError):
                        record = json.loads(line)
                        if _is_record(record):
                            records.append(record)
        except OSError:
            pass
        return records, start

    def peek(self, most: int) -> tuple[list[Record], int]:
        """Return the next records to send, and the token for `done`."""
        with self._lock:
            records, end = self._scan(self._handed, most)
            if records or end > self._handed:
                return records, end
            self._peeked = [self._memory[index] for index in range(min(most, len(self._memory)))]
            return self._peeked, -1

    def done(self, token: int, settled: bool = True) -> None:
        """Mark the records of a `peek` as sent, or (not `settled`) as handed over until `settle` or `again`."""
        with self._lock:
            if token < 0:
                # Those that the disk has taken in the meantime are sent once more.
                while self._peeked and self._memory and self._memory[0] is self._peeked[0]:
                    self._memory.popleft()
                    self._peeked = self._peeked[1:]
                return
            self._handed = token
            if settled:
                self._mark_sent()

    def _mark_sent(self) -> None:
        everything = self._handed >= self._size()
        self.state["sent"] = 0 if everything else self._handed
        # The state first: a crash in between sends the file again, and a mark behind its end would lose records.
        self._save()
        if everything:
            with contextlib.suppress(OSError):
                os.truncate(self.path, 0)
        self._handed = self.sent

    def mark_sent(self) -> None:
        """Mark all records handed over as sent: the backend has them on the disk, or on its server."""
        with self._lock:
            self._mark_sent()

    def resend(self) -> None:
        """Send unsettled records again, because the backend may have lost them."""
        with self._lock:
            self._handed = self.sent

    def deliver(self, send: Callable[[list[Record]], None], most: int, settled: bool = True) -> None:
        """Send everything, `most` records at a time. An exception of `send` leaves its records in the journal."""
        while True:
            records, token = self.peek(most)
            if not records and token <= self._handed:
                return
            if records:
                send(records)
            self.done(token, settled)

    def save(self) -> None:
        """Write the state, including the backend's values."""
        with self._lock:
            self._save()

    def _save(self) -> None:
        # On a full disk the old mark stays: records are sent once more, which the receiver does not mind.
        with contextlib.suppress(OSError):
            atomic.write_text(self.state_path, json.dumps(self.state) + "\n")

    def waiting(self) -> int:
        """Return the number of unsent records."""
        with self._lock:
            return len(self._scan(self.sent)[0]) + len(self._memory)

    def release(self) -> None:
        """Unlock the journal for another process."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
