"""Atomic file writes: a file is written under a hidden name in its folder, and renamed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

#: The prefix of hidden names. They keep the suffix, by which libraries choose a format.
PREFIX = ".new."


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a hidden name to write to. At the end the written file replaces `path`, also if that is a link.

    If the block raises, or writes nothing, `path` stays unchanged and the hidden file is removed. With `sync` the file
    is synced before the rename, and the folder after it. With `shared` several processes, of any host, may write at
    once; without it, the next write overwrites a killed process's hidden file. Raises OSError.
    """
    owner = f"{socket.gethostname()}-{os.getpid()}." if shared else ""
    work = path.with_name(f"{PREFIX}{owner}{path.name}")
    work.unlink(missing_ok=True)
    try:
        yield work
        if os.path.lexists(work):
            if sync:
                _sync(work)
            os.replace(work, path)
            if sync:
                sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            work.unlink(missing_ok=True)


def write_text(path: Path, text: str, sync: bool = False, shared: bool = False) -> None:
    """Write a text in UTF-8 atomically, as `replacing`. On failure raise OSError and leave the previous file."""
    with replacing(path, sync, shared) as work:
        work.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Sync `folder`, so that its renames survive a power failure."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
