"""One node of a study's job: Ray, and on the first node the study; on the others until the study is over.

Ports that Ray would take for itself alone are left to the system, for other jobs may share the node; and `ray stop` is
never called, for it would end theirs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

from ratc import files
from ratc.console import say
from ratc.study.ray_settings import ALONE, ENVIRONMENT, LOOPBACK, STORE_BYTES

#: Seconds for the first node to be there, and between two looks.
_PATIENCE, _PAUSE = 300.0, 0.5
#: Signals that are the batch script's matter: it asks the study to stop, which then saves.
_NOT_OURS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


@dataclass(slots=True)
class Node:
    """One node of the job: its ``rank``, and the ``cpus`` and ``gpus`` that the study has on it.

    ``head`` and ``port`` are the first node's address. The first node chooses ``sockets``; the others read it.

    If a job has one node, its ``head`` is the loopback address, and Ray listens there alone.
    """

    rank: int
    head: str
    port: int
    cpus: int
    gpus: int
    over: str
    sockets: str
    log: str
    command: tuple[str, ...]


def run(node: Node) -> int:
    """Run this node of the job. Returns the study's status on the first node, 0 on the others after its end, 1 if Ray
    fails.
    """
    for number in _NOT_OURS:
        signal.signal(number, signal.SIG_IGN)
    # Without a token of this job, any user with access to the port could run code as this user.
    os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray would prefer it to the file
    os.environ.update(ENVIRONMENT, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=f"{node.over}.token")
    if node.head == LOOPBACK:
        os.environ.update(ALONE)
    try:
        return _first(node) if node.rank == 0 else _other(node)
    finally:
        shutil.rmtree(node.sockets, ignore_errors=True)


def _first(node: Node) -> int:
    os.makedirs(os.path.dirname(node.over), exist_ok=True)
    # Its name cannot be guessed, and only this user can read it.
    node.sockets = tempfile.mkdtemp(prefix=f"{node.sockets}-")
    files.replace(_sockets_file(node), node.sockets.encode())
    token = os.environ["RAY_AUTH_TOKEN_PATH"]
    with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    unused = f"--ray-client-server-port={_free_port()}", "--include-dashboard=false"
    place = [f"--node-ip-address={LOOPBACK}"] if node.head == LOOPBACK else []
    ray = _ray(node, "--head", f"--port={node.port}", *place, *unused, f"--temp-dir={node.sockets}")
    try:
        if not _reached(node, ray):
            say(f"ratc: Ray does not start: {node.log}")
            return 1
        return _child(node.command).wait()
    finally:
        with open(node.over, "w"):
            pass
        _end(ray)
        os.unlink(token)
        os.unlink(_sockets_file(node))


def _other(node: Node) -> int:
    if not _reached(node, None):
        return 0 if os.path.exists(node.over) else 1
    if (problem := _take_sockets(node)) is not None:
        say(f"ratc: {problem}")
        return 1
    ray = _ray(node, f"--address={node.head}:{node.port}")
    try:
        while ray.poll() is None and not os.path.exists(node.over):
            time.sleep(_PAUSE)
        if os.path.exists(node.over):
            return 0
        say(f"ratc: Ray has ended: {node.log}")
        return 1
    finally:
        _end(ray)


def _sockets_file(node: Node) -> str:
    return f"{node.over}.sockets"


def _take_sockets(node: Node) -> str | None:
    """Make the folder of the first node on this one, too: Ray takes the same path, and would give every user access.
    Returns why it cannot be used: it is another user's, or a link; None if it can.
    """
    with open(_sockets_file(node), encoding="utf-8") as file:
        node.sockets = file.read()
    with contextlib.suppress(FileExistsError):
        os.mkdir(node.sockets, 0o700)
    found = os.lstat(node.sockets)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return f"{node.sockets} is not a folder of this user"
    os.chmod(node.sockets, 0o700)
    return None


def _ray(node: Node, *options: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    words += [f"--num-cpus={node.cpus}", f"--num-gpus={node.gpus}", f"--object-store-memory={STORE_BYTES}"]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    with open(node.log, "ab") as log:
        return _child([*words, *options], log)


def _free_port() -> int:
    """Return a free port: Ray requires one for its client server, which is not used here."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _child(command: Sequence[str], log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a process with default signal handlers: it would inherit the signals that are ignored here."""
    return subprocess.Popen(
        command,
        stdout=log,
        stderr=log and subprocess.STDOUT,
        preexec_fn=_usual_signals,  # there are no threads here
    )


def _usual_signals() -> None:
    for number in _NOT_OURS:
        signal.signal(number, signal.SIG_DFL)


def _reached(node: Node, ray: subprocess.Popen[bytes] | None) -> bool:
    """Wait until the first node's Ray answers; False if it ends, the study is over or it takes too long."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end and not os.path.exists(node.over):
        if ray is not None and ray.poll() is not None:
            break
        try:
            with socket.create_connection((node.head, node.port), 5.0):
                return True
        except OSError:
            time.sleep(_PAUSE)
    else:
        if not os.path.exists(node.over):
            say(f"ratc: there is no Ray at {node.head}:{node.port} after {_PATIENCE:.0f} s")
    return False


def _end(ray: subprocess.Popen[bytes]) -> None:
    """End Ray on this node; the kernel ends all its processes with it."""
    ray.terminate()
    try:
        ray.wait(10)
    except subprocess.TimeoutExpired:
        ray.kill()
        ray.wait()
