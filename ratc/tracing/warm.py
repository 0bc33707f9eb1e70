"""Jobs that share one import of torch: a process that has it forks itself for each (`fork_server.py`).

The import takes longer than tracing most models does, and a command may need several traces.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fork_server.py")
#: Variables that no interpreter and no library reads when it starts: a server serves jobs in which they differ.
_LATER = ("RATC_", "RAT_", "ACCELERATE_", "PYTEST_", "XDG_CACHE_HOME", "PYTHONPATH", "PWD", "OLDPWD")
#: The server, by its program and the environment it started in.
_servers: dict[tuple[str, tuple[tuple[str, str], ...]], _Server] = {}


class _Server:
    """A fork server, and its unread answers."""

    def __init__(self, program: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.sep,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C ends the parent, and with it this
        )
        self.owner = os.getpid()
        self._received = b""

    def alive(self) -> bool:
        """Whether it still serves this process. A server inherited by a fork belongs to the parent."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, job: Mapping[str, Any]) -> None:
        """Request the start of a job. Raises OSError if the server has ended."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()

    def receive(self, seconds: float | None) -> dict[str, int] | None:
        """Return the server's next answer; None after a timeout. Raises EOFError if it has ended."""
        assert self._process.stdout
        end = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._received:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            if not more:
                raise EOFError
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        told: dict[str, int] = json.loads(line)
        return told

    def close(self) -> None:
        """End it."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        self._process.kill()
        self._process.wait()


@dataclass(slots=True)
class Job:
    """A started job, with the part of the interface of `subprocess.Popen` that its callers use."""

    _server: _Server
    args: Sequence[str]
    pid: int = 0
    returncode: int | None = field(default=None)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status, negative for a signal. ``timeout`` is in seconds.

        Raises subprocess.TimeoutExpired.
        """
        while self.returncode is None:
            try:
                told = self._server.receive(timeout)
            except EOFError:
                self.returncode = -9
                break
            if told is None:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0)
            if told.get("ended") == self.pid:
                self.returncode = os.waitstatus_to_exitcode(told["status"])
        return self.returncode


def start(
    work: Mapping[str, str],
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    limits: Mapping[str, tuple[int, int]],
    streams: tuple[str, str, str],
    program: str = _SERVER,
) -> Job:
    """Start a job of Python's with torch imported; ``work`` is its ``module`` or ``file``. One runs at a time.

    ``limits`` are those of `resource.setrlimit`, by name; ``streams`` are the files of its standard streams.
    ``program`` is the server: `fork_server.py`, or a file that imports more. Raises OSError if no such process can be
    started.
    """
    shared = tuple(sorted((name, value) for name, value in environment.items() if not name.startswith(_LATER)))
    key = (program, shared)
    server = _servers.get(key)
    if server is None or not server.alive():
        for other in _servers.values():
            if other.owner == os.getpid():
                other.close()
        _servers.clear()
        server = _servers[key] = _Server(program, dict(shared))
    paths = list(filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
    job = {**work, "arguments": list(arguments), "folder": folder, "environment": dict(environment), "paths": paths}
    server.ask({**job, "limits": limits, "streams": streams})
    started = Job(server, [*work.values(), *arguments])
    while not started.pid:
        try:
            told = server.receive(None)
        except EOFError:
            raise OSError("the process that starts others has ended") from None
        started.pid = (told or {}).get("started", 0)
    return started
