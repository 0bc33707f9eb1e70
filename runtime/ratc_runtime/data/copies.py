"""Images that are in two splits under two names: copies and links, found by their content."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ratc_runtime.data.cache import CachedSplit
from ratc_runtime.data.near import shown
from ratc_runtime.data.sources import BUILT_IN
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted

#: The data sets whose first file is the image, one of its own for each sample or volume.
_KNOWN = tuple(known.made for known in BUILT_IN.values())
_CHUNK = 1 << 20


def between_splits(datasets: Mapping[str, Any], seconds: float | None) -> list[RuntimeFinding]:
    """Return R578 for each pair of splits with image files of equal content, within the time limit of `seconds`.

    Only files with the same size as one of another split are read.
    """
    end = None if seconds is None else time.monotonic() + seconds
    bare = {split: data.dataset if isinstance(data, CachedSplit) else data for split, data in datasets.items()}
    files = {split: _images(data, end) for split, data in bare.items() if isinstance(data, _KNOWN)}
    holders: dict[int, set[str]] = {}
    for split, sizes in files.items():
        for size in sizes.values():
            holders.setdefault(size, set()).add(split)
    seen: dict[bytes, tuple[str, Path]] = {}
    found: dict[tuple[str, str], list[tuple[Path, Path]]] = {}
    for split, path in _shared_sizes(files, holders):
        if end is not None and time.monotonic() > end:
            break
        digest = _digest(path)
        first, other = seen.setdefault(digest, (split, path)) if digest else (split, path)
        if first != split and other != path:  # the same path is an error of the annotations
            found.setdefault((first, split), []).append((other, path))
    return [_finding(*splits, pairs) for splits, pairs in found.items()]


def _images(dataset: Any, end: float | None) -> dict[Path, int]:
    """Return the sizes of a data set's image files, of those that are reached before the monotonic time `end`."""
    sizes: dict[Path, int] = {}
    for index in range(len(dataset)):
        if end is not None and time.monotonic() > end:
            break
        path = dataset.files(index)[0]
        if path not in sizes:
            try:
                sizes[path] = path.stat().st_size
            except OSError:  # the survey reports it
                continue
    return sizes


def _shared_sizes(
    files: Mapping[str, Mapping[Path, int]], holders: Mapping[int, set[str]]
) -> Iterator[tuple[str, Path]]:
    for split, sizes in files.items():
        yield from ((split, path) for path, size in sizes.items() if size and len(holders[size]) > 1)


def _digest(path: Path) -> bytes | None:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.digest()


def _finding(one: str, other: str, pairs: list[tuple[Path, Path]]) -> RuntimeFinding:
    return RuntimeFinding(
        "R578",
        f"{counted(len(pairs), 'image')} of {other} in {one}, too: {shown(str(pairs[0][1]))} is"
        f" {shown(str(pairs[0][0]))}",
    )
