"""The cache of results that take seconds to compute: files, each named by a digest of all that it depends on.

They lie in `$RATC_CACHE`, else in `ratc` under `$XDG_CACHE_HOME` or `~/.cache`, in a folder for each kind. Any may be
deleted at any time.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from ratc import files
from ratc.console import say

#: Seconds after which an unfinished file has no owner: no trace takes so long.
_UNFINISHED_S = 86_400
#: Folders that could not be written, and were reported.
_told: set[str] = set()


def folder(kind: str) -> str:
    """The folder of a kind. It need not exist."""
    given = os.environ.get("RATC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or ""
    base = base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(given or os.path.join(base, "ratc"), kind)


def packages() -> list[str]:
    """Every installed package as name and version: the names of its metadata folders."""
    found: set[str] = set()
    for place in sys.path:
        if os.path.isdir(place):
            found |= {name for name in os.listdir(place) if name.endswith(".dist-info")}
    return sorted(found)


def keep(path: str, data: bytes, most: int) -> None:
    """Write a file of a kind, and delete the oldest of its folder if there are more than ``most``.

    If the cache cannot be written, one line says so, once: everything works without it.
    """
    place = os.path.dirname(path)
    try:
        os.makedirs(place, exist_ok=True)
        files.clear(place)
        files.replace(path, data, flush=False)
        _prune(place, most)
    except OSError as error:
        if place not in _told:
            _told.add(place)
            say(f"ratc: cannot write the cache {place}: {error.strerror}; set RATC_CACHE to another folder")


def _prune(place: str, most: int) -> None:
    """Delete the oldest files of a folder. Others may do so at the same time."""
    times = {}
    for name in os.listdir(place):
        path = os.path.join(place, name)
        try:
            age = time.time() - os.path.getmtime(path)
            if name.startswith(".") or name.endswith(".part"):
                if age > _UNFINISHED_S:  # of a ratc that named them otherwise
                    os.unlink(path)
            else:
                times[path] = -age
        except FileNotFoundError:
            continue
    for path in sorted(times, key=times.__getitem__)[: max(0, len(times) - most)]:
        with suppress(FileNotFoundError):
            os.unlink(path)
