"""Tracking servers for the tests, one that fails as it is told and a real MLflow server, and a record for them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ratc_runtime.tracking.interface import Record

from tests.helpers.lockfile import environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def failing_server(hangs: bool) -> Iterator[str]:
    """Serve 500 to everything, or accept and never answer; yield the address."""
    ending = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            if hangs:
                ending.wait(120)
            with contextlib.suppress(OSError):
                self.send_response(500)
                self.send_header("content-length", "0")
                self.end_headers()

        do_POST = do_PATCH = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        ending.set()
        server.shutdown()
        server.server_close()


class MlflowServer:
    """A real `mlflow server` on SQLite, which can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = [
            f"--backend-store-uri=sqlite:///{self.folder}/server.db",
            f"--artifacts-destination={self.folder}/files",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, "--port", str(self.port), "--workers", "1"],
            env=environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_DISABLE_TELEMETRY="true"),
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(600):
            assert self.process.poll() is None, "mlflow server ended"
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.address}/health", timeout=1).close()
                return
            time.sleep(0.1)
        raise AssertionError("mlflow server does not answer")

    def kill(self) -> None:
        import os
        import signal

        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def point(step: int, **values: float) -> Record:
    return {"kind": "metrics", "step": step, "time": 1_700_000_000_000 + step, "values": values}
