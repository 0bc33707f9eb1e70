"""The weights that a spec starts from (`training.init_from`): their file, and its digest.

The runtime compares the digest before it loads them (`ratc_runtime/checks/first_weights.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from typing import Any

from ratc import files
from ratc.plan import Value, Values

PATH = "training.init_from.path"
#: In an output folder, in this order; those without a suffix are DeepSpeed's folders.
_CHECKPOINTS = ("best.pt", "best", "last.pt", "last")
_HEADER = "progress.pt"
_BLOCK = 1 << 22


def digests(settings: Values, folder: str) -> Values:
    """Return, as `weights:PATH` for every path that the spec or a point of its array names, the path of the file and
    its digest. Paths without a file are left out. ``folder`` is the spec's.
    """
    known = {}
    for path in dict.fromkeys(_named(settings)):
        file = _file(folder, path)
        digest = _digest(os.path.join(folder, os.path.expanduser(file)))
        if digest is not None:
            known[f"weights:{path}"] = Value((file, digest), "derived", f"SHA-256 of {file}")
    return Values(known)


def _named(settings: Values) -> Iterator[str]:
    own = settings.get(PATH)
    if own is not None and isinstance(own.value, str):
        yield own.value
    for path in settings:
        if path.startswith(("sweep", "tuning")):
            yield from _texts(settings[path].value, named=False)


def _texts(value: Any, named: bool) -> Iterator[str]:
    """Yield the texts below a mapping's key that is `PATH`."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, named or key == PATH)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, named)
    elif named and isinstance(value, str):
        yield value


def _file(folder: str, path: str) -> str:
    """Return the path of an output folder's checkpoint, by its own name and not that of a link; else the path."""
    whole = os.path.join(folder, os.path.expanduser(path))
    for name in _CHECKPOINTS:
        link = os.path.join(whole, "checkpoints", name)
        if os.path.exists(link):
            real = os.path.realpath(link)
            beside = os.path.dirname(real) == os.path.realpath(os.path.dirname(link))
            return os.path.join(path, "checkpoints", os.path.basename(real) if beside else name)
    return path


def _digest(path: str) -> str | None:
    """Return `sha256:…` of a file, or of the file of a DeepSpeed checkpoint that has the digests of all others; None if
    there is none that can be read.
    """
    file = os.path.join(path, _HEADER) if os.path.isdir(path) else path
    try:
        state = os.stat(file)
        return f"sha256:{_of_file(file, state.st_size, state.st_mtime_ns)}"
    except OSError:
        return None


@cache
def _of_file(path: str, _size: int, _changed: int) -> str:
    """The digest of a regular file, kept for as long as its size and its time are the same."""
    digest = sha256()
    with files.open_regular(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
