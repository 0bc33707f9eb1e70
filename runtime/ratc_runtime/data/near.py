"""Files that are nearly called what a list names: what a person is told of a name that is not there."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from ratc_runtime.errors import visible

#: Entries of a folder that are looked at.
_MOST = 200_000
ANOTHER_ENDING = "with another ending"
#: The longest part of a path, and the longest path, that file systems take, in bytes (NAME_MAX, PATH_MAX of Linux).
LONGEST, LONGEST_PATH = 255, 4095


def shown(name: str) -> str:
    """Return a name of a data set as a message shows it: in one line, without control characters, not too long. Of a
    path the end counts.
    """
    plain = visible(name).replace("\n", "\\n").replace("\t", "\\t")
    return plain if len(plain) <= 100 else f"{plain[:30]}…{plain[-60:]} ({len(name)} characters)"


def is_possible(name: str) -> bool:
    """Tell whether a file can have this path: no NUL, no part that is too long."""
    parts = [part.encode("utf-8", "replace") for part in name.split("/")]
    return "\0" not in name and max(map(len, parts)) <= LONGEST and sum(map(len, parts)) + len(parts) <= LONGEST_PATH


def is_file(path: Path) -> bool:
    """Tell whether a file is there; a path that the system does not take is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def nearest(name: str, names: Collection[str]) -> tuple[str, str] | None:
    """Return the name among `names` that is nearly `name`, and how it differs, in words; None if there is none."""
    wanted = unicodedata.normalize("NFC", name)
    same, spaced, folded, stem = None, None, None, None
    own_stem = PurePosixPath(wanted).stem.casefold()
    for other in names:
        composed = unicodedata.normalize("NFC", other)
        if composed == wanted:
            same = other
            break
        if composed.split() == wanted.split():  # a list's name with a space at its end, or a carriage return
            spaced = spaced or other
        elif composed.casefold() == wanted.casefold():
            folded = folded or other
        elif PurePosixPath(composed).stem.casefold() == own_stem:
            stem = min(stem or other, other)
    if same is not None:
        return same, "in another Unicode normal form (the letters look the same and are other bytes)"
    if spaced is not None:
        return spaced, "with other spaces or line ends"
    if folded is not None:
        return folded, "with other capital letters"
    return (stem, ANOTHER_ENDING) if stem is not None else None


def listed(folder: Path) -> list[str]:
    """Return the names in a folder, up to a number; none if it cannot be read."""
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) >= _MOST:
                    break
    except (OSError, ValueError):
        pass
    return found
