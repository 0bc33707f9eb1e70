"""Heartbeats that need no collective: one small file a rank in the output folder, written by a thread.

A rank's file says what it does and since when; that a rank is alive is seen by its count growing, so clocks of
different machines, and clocks that jump, do not matter. The output folder must be one that all ranks see, as the
checkpoints need anyway; if it is not, each rank knows only those of its own node.
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

from ratc_runtime import atomic

FOLDER = "watchdog"
_ENDED = "ended.json"


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself. `seconds` since it last got on; `born` tells two processes of one number apart."""

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


def born(pid: int) -> str:
    """Return when a process of this machine started, in clock ticks since boot; empty if there is none (any more).

    Source: proc(5), /proc/PID/stat, field 22. A zombie is no process any more.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def start_name(environment: Mapping[str, str]) -> str:
    """Return a name that the ranks of one start share and no other run of the moment has: where they meet."""
    address = environment.get("MASTER_ADDR", "")
    if address in ("", "localhost", "127.0.0.1", "::1"):
        address = socket.gethostname()
    parts = [address, *(environment.get(name, "") for name in ("MASTER_PORT", "TORCHELASTIC_RUN_ID"))]
    return hashlib.sha256(":".join(parts).encode()).hexdigest()[:8]


class Heartbeats:
    """The files of one start. Nothing here raises: a full disk must not end a run that trains."""

    def __init__(self, output_dir: Path, start: str, rank: int) -> None:
        # A folder of its own: another run that is refused this output folder must not be heard in here.
        self.folder, self.rank = output_dir / FOLDER / start, rank
        self._own, self._ended = self._path(rank), self.folder / _ENDED
        with contextlib.suppress(OSError):
            self._own.unlink(missing_ok=True)  # an earlier start's
        # What an earlier start said of its end is none of this one's; taking it away could hide this one's.
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
        """Leave a heartbeat."""
        self._put(self._own, asdict(beat))

    def read(self, rank: int) -> Beat | None:
        """Return the last heartbeat of a rank, if any can be read."""
        try:
            return Beat(**json.loads(self._path(rank).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def dump(self, text: str) -> Path:
        """Keep every stack of this rank for those who look into the hang; return where."""
        path = self.folder / f"rank-{self.rank}.txt"
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return path

    def end(self, message: str) -> None:
        """Tell the other ranks that the run is lost, with the reason."""
        self._put(self._ended, {"rank": self.rank, "message": message})

    def ended(self) -> str | None:
        """Return why the run is lost, if a rank of this start has said so."""
        if self._stamp() in (None, self._old):
            return None
        try:
            found = json.loads(self._ended.read_bytes())
            return f"rank {found['rank']}: {found['message']}"
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def close(self) -> None:
        """Take this rank's sign away: it has ended as it should."""
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
    """End a process of this machine, if it is still the one that left the beat; also one that is stopped."""
    if beat.born and born(beat.pid) == beat.born:
        with contextlib.suppress(OSError):
            os.kill(beat.pid, signal.SIGKILL)
