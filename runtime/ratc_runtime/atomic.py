"""Files that are there whole or not at all: written under a hidden name beside their place, and renamed."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

#: What the hidden names begin with: the ends are those of the places, by which libraries choose a format.
PREFIX = ".new."


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """Give a hidden name to write under; at the end what was written replaces `path`, also if that is a link.

    If the block raises, or writes nothing, `path` stays as it was and nothing is left beside. With `sync` the disk has
    the file before it gets its name, and then the name. With `shared` several processes, of any host, may write at
    once; without it, what a killed one left is written over by the next. Raises OSError.
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
    """Write a text in UTF-8 as `replacing` does; raise OSError, leaving what was there, if that fails."""
    with replacing(path, sync, shared) as work:
        work.write_text(text, encoding="utf-8")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
