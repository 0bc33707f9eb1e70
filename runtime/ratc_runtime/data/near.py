"""Files with a similar name, for messages about a missing file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from ratc_runtime.errors import visible

#: Entries of a folder that are read at most.
_MOST = 200_000
#: Characters of a name in a picture.
DRAWN = 40
ANOTHER_ENDING = "with another ending"
#: The longest part of a path and the longest path, in bytes (NAME_MAX, PATH_MAX of Linux).
LONGEST, LONGEST_PATH = 255, 4095


def shown(name: str) -> str:
    """Return a name of a data set for a message: in one line, without control characters, and shortened. A long path
    keeps its end.
    """
    plain = visible(name).replace("\n", "\\n").replace("\t", "\\t")
    return plain if len(plain) <= 100 else f"{plain[:30]}…{plain[-60:]} ({len(name)} characters)"


def drawn(name: str) -> str:
    """Return a name of a data set for a picture: in a line, short, and its dollar signs begin no formula."""
    plain = shown(name)
    plain = plain if len(plain) <= DRAWN else f"{plain[: DRAWN // 2]}…{plain[-DRAWN // 2 :]}"
    return plain.replace("$", "\\$")


def is_possible(name: str) -> bool:
    """Return whether a file can have this path: no NUL, no part that is too long."""
    parts = [part.encode("utf-8", "replace") for part in name.split("/")]
    return "\0" not in name and max(map(len, parts)) <= LONGEST and sum(map(len, parts)) + len(parts) <= LONGEST_PATH


def is_file(path: Path) -> bool:
    """Return whether a file exists. A path that the system rejects does not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def nearest(name: str, names: Collection[str]) -> tuple[str, str] | None:
    """Return the most similar name of `names`, and the difference in words; None if none is similar."""
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
        return same, "in another Unicode normal form: the letters look the same, but their bytes differ"
    if spaced is not None:
        return spaced, "with other spaces or line ends"
    if folded is not None:
        return folded, "with other capital letters"
    return (stem, ANOTHER_ENDING) if stem is not None else None


def listed(folder: Path) -> list[str]:
    """Return up to `_MOST` names in a folder; none if it cannot be read."""
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
