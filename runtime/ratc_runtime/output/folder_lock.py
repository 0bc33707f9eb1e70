"""One run at a time in an output folder: the file `owner.json` is locked while the run lives.

The kernel's lock (`fcntl`, which NFS from version 4 and most parallel file systems share between nodes) decides; the
file's content is only for messages. The lock ends with the process in any case, and loader processes do not inherit it.
If the folder is deleted, unmounted or taken by another run during training, the next write detects it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ratc_runtime.distributed import launch_environment
from ratc_runtime.errors import RuntimeFinding, warn

FILE = "owner.json"
#: Seconds to wait for a process that is just ending, and for the lock of a node that is gone (NFS: a lease of 90 s).
PATIENCE, PATIENCE_AFTER_REQUEUE = 2.0, 120.0
_HELD = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class FolderLock:
    """This process's lock on an output folder. Only rank 0 has one."""

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / FILE
        self._owner: dict[str, Any] = {}
        self._handle: int | None = None
        self._device: int | None = None  # of the file system that the folder lay on when it was taken

    def take(self, environment: Mapping[str, str]) -> None:
        """Lock the folder. Raises R517 if a living run holds it, R510 if the file cannot be written.

        A requeued job takes over from its own earlier start, whose node may be gone.
        """
        here = launch_environment.detect(environment)
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": here.job,
            "restarts": here.restarts,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "token": secrets.token_hex(16),
        }
        try:
            self._take()
        except OSError as error:
            raise RuntimeFinding("R510", f"cannot write {self.path}", error.strerror or str(error)) from None

    def _take(self) -> None:
        begun, other = time.monotonic(), None
        while not self._try():
            other = self._read()
            mine = other.get("job") is not None and other.get("job") == self._owner["job"]
            requeued = mine and self._owner["restarts"] > other.get("restarts", 0)
            if time.monotonic() - begun < (PATIENCE_AFTER_REQUEUE if requeued else PATIENCE):
                time.sleep(0.2)
                continue
            if not requeued:
                raise self._refusal(other)
            warn(f"{self.path} is still locked by this job's earlier start on {other.get('host')}; it is taken over")
            self.path.unlink(missing_ok=True)  # the lock stays with the old file, which has no name any more

    def _try(self) -> bool:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                os.close(handle)
                return False
            if error.errno not in _UNSUPPORTED:
                os.close(handle)
                raise
            if self._is_alive_here(self._read()):
                os.close(handle)
                return False
            warn(f"no locks on this file system ({error.strerror}): a run on another node could write here as well")
        if not self._same(handle):
            os.close(handle)  # another start has replaced the file in between
            return False
        self._handle, self._device = handle, os.fstat(handle).st_dev
        text = json.dumps(self._owner, indent=2).encode() + b"\n"
        os.ftruncate(handle, 0)
        os.pwrite(handle, text, 0)
        os.fsync(handle)
        return True

    def _same(self, handle: int) -> bool:
        try:
            found, held = os.stat(self.path), os.fstat(handle)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def check(self) -> None:
        """Raise OSError unless the folder is still this run's. Lock it again if it was deleted and made again."""
        if self._device is None or (self._handle is not None and self._same(self._handle)):
            return
        if not self.path.parent.is_dir():
            raise OSError(errno.ENOENT, f"the output folder {self.path.parent} is gone")
        if not self.path.exists() and os.stat(self.path.parent).st_dev != self._device:
            # This is now the empty mount point.
            raise OSError(errno.ENOENT, f"the file system of the output folder {self.path.parent} is gone")
        other = self._read()
        if other and other.get("token") != self._owner["token"]:
            raise OSError(errno.EBUSY, f"the output folder is held by {_words(other)} now")
        # A file system that is mounted again shows the same file under another number. The old handle goes first:
        # to close any handle on a file gives all of this process's locks on it away.
        self._close_handle()
        if not self._try():
            raise OSError(errno.EBUSY, f"the output folder is held by {_words(self._read())} now")

    def release(self) -> None:
        """Release the folder. The file stays, with its last owner."""
        self._close_handle()
        self._device = None

    def __del__(self) -> None:
        self._close_handle()

    def _close_handle(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = None

    def _read(self) -> dict[str, Any]:
        # Not if this process holds the lock on the very file: closing it would give the lock away.
        try:
            content = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _is_alive_here(self, other: dict[str, Any]) -> bool:
        pid = other.get("pid")
        if other.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def _refusal(self, other: dict[str, Any]) -> RuntimeFinding:
        return RuntimeFinding(
            "R517",
            f"another run writes into the output folder {self.path.parent}",
            f"it is held by {_words(other)} ({self.path} says so)",
            "wait until it has ended, stop it (a file STOP in the folder does), or name another folder with"
            " --output-dir or RAT_OUTPUT_DIR",
        )


def _words(owner: dict[str, Any]) -> str:
    if not owner:
        return "an unknown process"
    job = f", job {owner['job']}" if owner.get("job") else ""
    return f"process {owner.get('pid')} on {owner.get('host')}{job}, started {owner.get('started')}"
