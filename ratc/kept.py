"""What commands keep because it takes seconds to find out: files, each named by a digest of all that it depends on.

They lie in `$RATC_CACHE`, else in `ratc` under `$XDG_CACHE_HOME` or `~/.cache`, in a folder for each kind. Any may be
deleted at any time.
"""

from __future__ import annotations

import os
import sys


def folder(kind: str) -> str:
    """The folder of a kind. It need not exist."""
    given = os.environ.get("RATC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(given or os.path.join(base, "ratc"), kind)


def packages() -> list[str]:
    """Every installed package as name and version: the names of its metadata folders."""
    found: set[str] = set()
    for place in sys.path:
        if os.path.isdir(place):
            found |= {name for name in os.listdir(place) if name.endswith(".dist-info")}
    return sorted(found)


def prune(place: str, most: int) -> None:
    """Delete the oldest files of a folder, if there are more than so many. Others may do so at the same time."""
    times = {}
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if not name.endswith(".part"):
            try:
                times[path] = os.path.getmtime(path)
            except FileNotFoundError:
                continue
    for path in sorted(times, key=times.__getitem__)[: max(0, len(times) - most)]:
        try:
            os.unlink(path)
        except FileNotFoundError:
            continue
