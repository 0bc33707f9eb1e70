"""Finds compiled folders in a tree, and reads how the files in them were made."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence

from ratc import files, targets
from ratc.compiled.read_lock import command
from ratc.targets import job, lock

_SKIPPED = frozenset((".git", ".venv", "venv", "node_modules", "__pycache__", "outputs", job.POINTS))
_MARK = b"Compiled by ratc from "
#: The marks stand in the first lines; a lock's version may follow a long command.
_HEAD = 16384


def compiled(paths: Sequence[str], left_out: Callable[[OSError], None] | None = None) -> Iterator[str]:
    """Yield every folder below the paths that holds a lock of ratc's, or a file of ratc's without its lock, once.
    Raises OSError for a path that does not exist or cannot be listed. Folders below it that cannot are left out, and
    ``left_out`` is called with the error of each.
    """
    seen: set[str] = set()
    for path in paths:
        if "\0" in path:
            raise FileNotFoundError(errno.ENOENT, "no file has a null character in its name", path)
        os.stat(path)
        start = path if os.path.isdir(path) else os.path.dirname(path) or "."
        os.scandir(start).close()  # os.walk passes over a folder that cannot be listed
        if not os.stat(start).st_nlink:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        for folder, below, names in os.walk(start, onerror=left_out):
            below[:] = sorted(name for name in below if name not in _SKIPPED)
            if _is_compiled(folder, names) and (real := os.path.realpath(folder)) not in seen:
                seen.add(real)
                yield os.path.normpath(folder)


def head(folder: str) -> tuple[str, str]:
    """Return the command in the head of the lock, or of the first other file that has one, and that file's name."""
    for name in (lock.NAME, *targets.NAMES):
        words = command(_first(os.path.join(folder, name)).decode("utf-8", errors="replace"))
        if words:
            return words, name
    return "", lock.NAME


def marked(folder: str, name: str) -> bool:
    """Whether a file's head says that ratc made it."""
    return _MARK in _first(os.path.join(folder, name))


def _is_compiled(folder: str, names: Sequence[str]) -> bool:
    if lock.NAME in names:
        start = _first(os.path.join(folder, lock.NAME))
        if _MARK in start or b"lock_version" in start:
            return True
    # Also if the lock exists and is broken: its files lie beside it.
    return any(name in names and marked(folder, name) for name in targets.NAMES)


def _first(path: str) -> bytes:
    try:
        with files.open_regular(path) as file:
            return file.read(_HEAD)
    except OSError:
        return b""
