"""Keeps the submissions from a folder of artifacts in `.submitted/`, which git ignores and compiling leaves alone.

It belongs to this checkout and its clusters, with times and hosts: it is not an artifact, and not for other people.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from ratc import files
from ratc.console import say
from ratc.diagnostics import Diagnostic
from ratc.scheduler import record
from ratc.scheduler.record import Submission

FOLDER = ".submitted"
_RECORD, _LOCK, _FORMER = "jobs.json", "lock", "lock.yaml"
#: Bytes of a file that are read.
_MOST = 64 << 20


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Lock the folder against other `ratc submit`, which wait. Raises OSError.

    The kernel releases the lock at the process's end. File systems without locks have none.
    """
    inner = os.path.join(folder, FOLDER)
    os.makedirs(inner, exist_ok=True)
    files.refuse_link(folder, os.path.join(FOLDER, _LOCK))
    files.clear(inner)
    files.replace(os.path.join(inner, ".gitignore"), b"*\n", flush=False)
    handle = os.open(os.path.join(inner, _LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another `ratc submit` in {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # this file system has no locks
        yield
    finally:
        os.close(handle)


def read(folder: str) -> tuple[tuple[Submission, ...], tuple[Diagnostic, ...]]:
    """Return the submissions from a folder, the latest last. Code: R412, if the record exists and cannot be read."""
    path = os.path.join(folder, FOLDER, _RECORD)
    try:
        with files.open_regular(path) as file:
            found = record.load(file.read(_MOST).decode("utf-8"))
    except FileNotFoundError:
        return (), ()
    except (OSError, ValueError):
        found = None
    if found is None:
        message = f"`{path}` cannot be read: earlier submissions from this folder are unknown"
        return (), (Diagnostic("R412", message, helps=("check the queue for earlier jobs, then remove the file",)),)
    return found, ()


def write(folder: str, submissions: Sequence[Submission]) -> None:
    """Replace the record atomically. Raises OSError."""
    files.replace(os.path.join(folder, FOLDER, _RECORD), record.dump(submissions).encode())


def former_lock(folder: str) -> str | None:
    """The text of the lock that was submitted last."""
    with suppress(OSError, ValueError), files.open_regular(os.path.join(folder, FOLDER, _FORMER)) as file:
        return file.read(_MOST).decode("utf-8")
    return None


def keep_lock(folder: str, text: str) -> None:
    """Remember the lock that is submitted. Raises OSError."""
    files.replace(os.path.join(folder, FOLDER, _FORMER), text.encode())
