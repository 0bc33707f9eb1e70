"""Heartbeats without collectives: one small file per rank in the output folder, written by a thread.

The file gives the rank's phase and the time since its last progress. A rank is alive if its count grows, so clocks that
differ between machines or jump do not matter. All ranks must see the output folder, as for checkpoints. Otherwise each
rank knows only those of its own node.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ratc_runtime.output import atomic

FOLDER = "watchdog"
_ENDED = "ended.json"


@dataclass(frozen=True)
class Beat:
    """The state of a rank.

    `count` grows with each heartbeat, `marks` with each mark of progress. `seconds` counts from the last progress.
    `born` distinguishes two processes with the same PID.
    """

    rank: int
    host: str
    pid: int
    born: str
    count: int
    marks: int
    seconds: float
    phase: str
    waiting: bool
    stack: str


def process_start_time(pid: int) -> str:
    """Return the start time of a process of this machine, in clock ticks since boot; empty if there is no such process.

    Source: proc(5), /proc/PID/stat, field 22. A zombie does not count as a process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def start_name(environment: Mapping[str, str]) -> str:
    """Return a name that all ranks of one start share and no other current run has, from their rendezvous address."""
    address = environment.get("MASTER_ADDR", "")
    if address in ("", "localhost", "127.0.0.1", "::1"):
        address = socket.gethostname()
    parts = [address, *(environment.get(name, "") for name in ("MASTER_PORT", "TORCHELASTIC_RUN_ID"))]
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:8]


class Heartbeats:
    """The heartbeat files of one start. OSError is suppressed: a full disk must not end a run that trains."""

    def __init__(self, output_dir: Path, start: str, rank: int) -> None:
        # A folder per start, without the heartbeats of another run that is refused this output folder.
        self.folder, self.rank = output_dir / FOLDER / start, rank
        self._own, self._ended = self._path(rank), self.folder / _ENDED
        with contextlib.suppress(OSError):
            self._own.unlink(missing_ok=True)  # an earlier start's
        # The failure of an earlier start is ignored. Removing its file could remove this start's.
        self._old = self._stamp()

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.json"

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._ended.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def write(self, beat: Beat) -> None:
        """Write this rank's heartbeat."""
        self._put(self._own, asdict(beat))

    def read(self, rank: int) -> Beat | None:
        """Return the last heartbeat of a rank; None if it cannot be read."""
        try:
            return Beat(**json.loads(self._path(rank).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def dump(self, text: str) -> Path:
        """Write the stacks of this rank to a file, to diagnose the hang, and return its path."""
        path = self.folder / f"rank-{self.rank}.txt"
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return path

    def end(self, message: str) -> None:
        """Write the reason of this rank's failure, which the other ranks read with `ended`."""
        self._put(self._ended, {"rank": self.rank, "message": message})

    def ended(self) -> str | None:
        """Return the reason of the failure if a rank of this start has reported one."""
        if self._stamp() in (None, self._old):
            return None
        try:
            found = json.loads(self._ended.read_bytes())
            return f"rank {found['rank']}: {found['message']}"
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def close(self) -> None:
        """Remove this rank's heartbeat after a regular end."""
        with contextlib.suppress(OSError):
            self._own.unlink(missing_ok=True)
            if self._old is not None and self._stamp() == self._old:
                self._ended.unlink()
            # Both fail if there are others, or stacks to look at.
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _put(self, path: Path, content: object) -> None:
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic.write_text(path, json.dumps(content), shared=True)


def kill(beat: Beat) -> None:
    """Kill a process of this machine if it still is the one of the heartbeat. SIGKILL also ends a stopped process."""
    if beat.born and process_start_time(beat.pid) == beat.born:
        with contextlib.suppress(OSError):
            os.kill(beat.pid, signal.SIGKILL)
