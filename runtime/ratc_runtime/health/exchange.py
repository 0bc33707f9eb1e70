"""Words between the first node and the others: lines of JSON over TCP, each with a code under the start's own key.

Whoever reaches the port could otherwise have a healthy node left out, or an unhealthy one trained on. The key comes
from the batch script by the environment (`RATC_HEALTH_KEY`), so it is in no command line and in no file of the run.
A word is never executed, and is read into the models of `report.py`.

The first node listens where training will meet, and stops to listen before it gives the verdict. So a node that starts
its launcher early finds nobody there, and tries again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
import threading
import time
from typing import Any

#: Longest line; a report of 64 cards with all of its words is a tenth of it.
LONGEST = 2**20
#: Seconds that a connection may take to identify itself.
_GREETING_S = 10.0


class Silence(Exception):
    """Nothing valid was heard before the deadline, or the other side has gone."""


class Line:
    """One connection. `name` is the sender's, so that no word can be played back to its author."""

    def __init__(self, connection: socket.socket, key: bytes, start: str, name: str, other: str) -> None:
        self._socket, self._key, self._start = connection, key, start
        self.name, self.other = name, other
        self._sent = self._received = 0
        self._buffer = b""

    def send(self, word: dict[str, Any]) -> None:
        """Send a word. If the other side has gone, its silence will be noticed."""
        text = json.dumps(word).encode()
        with contextlib.suppress(OSError):
            self._socket.settimeout(10)
            self._socket.sendall(self._code(self.name, self._sent, text) + b" " + text + b"\n")
        self._sent += 1

    def receive(self, deadline: float) -> dict[str, Any]:
        """Return the next word, before a time of `time.monotonic()`. Raises Silence."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > LONGEST:
                raise Silence
            try:
                # After the deadline only what is there already: it was told in time, while another was waited for.
                self._socket.settimeout(max(0.0, deadline - time.monotonic()))
                piece = self._socket.recv(2**16)
            except OSError:
                raise Silence from None
            if not piece:
                raise Silence
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        code, _, text = line.partition(b" ")
        if not hmac.compare_digest(code, self._code(self.other, self._received, text)):
            raise Silence
        self._received += 1
        try:
            word = json.loads(text)
        except (ValueError, RecursionError):
            raise Silence from None
        if not isinstance(word, dict):
            raise Silence
        return word

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _code(self, sender: str, number: int, text: bytes) -> bytes:
        head = f"{self._start}\n{sender}\n{number}\n".encode()
        return hmac.new(self._key, head + text, hashlib.sha256).hexdigest().encode()


class Head:
    """The first node's side. `nodes` counts itself."""

    def __init__(self, port: int, key: bytes, start: str, nodes: int) -> None:
        self._key, self._start, self._nodes = key, start, nodes
        self.lines: dict[int, Line] = {}
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        if nodes > 1:
            self._listener = _listener(port)
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def wait(self, deadline: float) -> None:
        """Return when all other nodes have connected, or at the deadline, a time of `time.monotonic()`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.lines) == self._nodes - 1, max(0, deadline - time.monotonic()))

    def stop_listening(self) -> None:
        """Stop to listen: the port is free for the run."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._admit, args=(connection,), daemon=True).start()

    def _admit(self, connection: socket.socket) -> None:
        """Take a connection that knows the key, and gives a rank without a connection."""
        line = Line(connection, self._key, self._start, "head", "")
        try:
            # Its name is in the word that the name's code is of: read it first, and believe it if the code is right.
            connection.settimeout(_GREETING_S)
            rank = int(connection.recv(8, socket.MSG_WAITALL))
            line.other = f"node {rank}"
            word = line.receive(time.monotonic() + _GREETING_S)
        except (Silence, OSError, ValueError):
            connection.close()
            return
        with self._changed:
            if word.get("rank") != rank or not 0 < rank < self._nodes or rank in self.lines:
                connection.close()
                return
            self.lines[rank] = line
            self._changed.notify_all()


def join(host: str, port: int, key: bytes, start: str, rank: int, deadline: float) -> Line:
    """Return a line from a node to the first one, which may not listen yet. Raises Silence at the deadline, a time of
    `time.monotonic()`.
    """
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=5)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise Silence from None
            time.sleep(0.2)
    with contextlib.suppress(OSError):
        connection.sendall(f"{rank:8d}".encode())
    line = Line(connection, key, start, f"node {rank}", "head")
    line.send({"rank": rank})
    return line


def _listener(port: int) -> socket.socket:
    """Return a socket that listens on all addresses, of both families if the machine has them."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", port), backlog=4096)
