"""The thread that delivers records to one backend, so that training never waits for a disk or a network."""

from __future__ import annotations

import threading
import time
from collections import deque

from ratc_runtime.errors import warn
from ratc_runtime.tracking.interface import Backend, Record, finite_only, reason
from ratc_runtime.tracking.journal import Journal

#: Seconds between deliveries.
PERIOD = 5.0
#: Seconds before the first new attempt after a failure; it doubles up to the second number.
RETRY = (5.0, 60.0)
#: Records that may wait in memory: hours of them, if the thread hangs in one call.
MAX_QUEUE = 20_000
RECORDS_PER_CALL = 500


class DeliveryThread:
    """Takes records from the training loop in a microsecond and delivers them later.

    With a journal they are first written to the disk, and stay there while the backend is unreachable. Without one a
    backend that fails is off for the rest of the run.
    """

    def __init__(self, backend: Backend, journal: Journal | None) -> None:
        self.backend, self.journal = backend, journal
        self._queue: deque[Record] = deque()
        self._order = threading.Lock()  # records are written in order of arrival, by any thread
        self._held: list[Record] = []  # taken from the queue, for a backend without a journal
        self._opened = self._off = self._failing = False
        self._wait, self._retry_at = RETRY[0], 0.0
        self._wake, self._closing, self._said_full = threading.Event(), False, False
        self._thread = threading.Thread(target=self._run, name=f"tracking-{backend.name}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a record. Never waits. Called by the training loop and by the monitor."""
        if self._off:
            return
        if len(self._queue) >= MAX_QUEUE and record["kind"] == "metrics":
            return
        self._queue.append(record)

    def keep(self) -> None:
        """Write queued records to the journal, if there is one. Does not wait for a network."""
        with self._order:
            taken: list[Record] = []
            while self._queue:
                record = self._queue.popleft()
                if record["kind"] == "metrics":
                    record = {**record, "values": finite_only(record["values"])}
                taken.append(record)
            if self.journal is None:
                self._held += taken
                return
            self.journal.append(taken)
        if (self.journal.error or self.journal.dropped) and not self._said_full:
            self._said_full = True
            why = self.journal.error or f"{self.journal.path} has reached {self.journal.limit} bytes"
            warn(f"curves for {self.backend.name} cannot be kept on the disk and may have gaps: {why}")

    def flush(self) -> None:
        """Bring the journal up to date and request a delivery, without waiting for it."""
        if self.journal is not None:
            self.keep()
        self._wake.set()

    def close(self) -> int:
        """Deliver the rest, within the backend's patience; return the number of undelivered records."""
        self._closing = True
        self._wake.set()
        backend = self.backend
        self._thread.join(backend.patience_after_failure if self._failing else backend.patience)
        if self.journal is not None:
            self.keep()
            if not self._thread.is_alive():
                self.journal.release()
            return self.journal.waiting()
        if self._thread.is_alive() and not self._off:
            warn(f"{backend.name} does not answer; records that it has not taken yet may be missing there")
        return 0

    def _run(self) -> None:
        while True:
            closing = self._closing
            first_failure = False
            try:
                self.keep()
                self._deliver(closing)
                if closing and self._opened:
                    self.backend.close()
                    if self.journal is not None:
                        self.journal.mark_sent()
            except Exception as error:  # servers, databases and disks raise various errors
                first_failure = self.journal is not None and not self._failing
                self._failed(error)
            if closing and first_failure:
                continue  # no later delivery comes, so this one gets a second attempt
            if closing:
                return
            self._wake.wait(PERIOD)
            self._wake.clear()

    def _deliver(self, closing: bool) -> None:
        if self._off or (time.monotonic() < self._retry_at and not closing):
            return
        if not self._opened:
            self.backend.open()
            self._opened = True
        if self.journal is None:
            taken, self._held = self._held, []
            if taken:
                self.backend.send(taken)
            return
        self.journal.deliver(self.backend.send, RECORDS_PER_CALL, settled=not self.backend.safe_after_close)
        if self._failing:
            self._failing, self._wait = False, RETRY[0]
            print(f"{self.backend.name} answers again; waiting records are sent", flush=True)

    def _failed(self, error: Exception) -> None:
        text = reason(error)
        if self.journal is None:
            if not self._off:
                warn(f"{self.backend.name} is off for the rest of this run: {text}")
            self._off = True
            self._queue.clear()
            return
        if not self._failing:
            warn(
                f"{self.backend.name} does not take curves: {text}. Training goes on; they wait in {self.journal.path}"
            )
        self.journal.resend()
        self._failing = True
        self._opened = False
        self._retry_at = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, RETRY[1])
