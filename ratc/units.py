"""Sizes and times as people write them: text to bytes and seconds, and back as schedulers read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: The form of a walltime: a number alone would be minutes to Slurm and hours to a reader, so it is none.
WALLTIME = r"^([0-9]{1,4}-[0-9]{1,4}(:[0-9]{1,2}){0,2}|[0-9]{1,4}(:[0-9]{1,2}){1,2})$"

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def memory_bytes(text: str | int) -> int:
    """Bytes of a size such as ``128GB``, ``1.5T`` or 64 (GB). Slurm and LSF count a K, M, G or T in powers of 1024.

    At least one byte: Slurm takes 0 as all memory of a node.
    """
    match = re.fullmatch(r"([0-9.]+) ?([KMGT]?)(?:I?B)?", str(text).upper())
    assert match, "the schema has checked the form"
    unit = match[2] or "G"
    return max(1, int(float(match[1]) * _UNITS[unit]))


def size_text(size: int, fine: bool = False) -> str:
    """Bytes for people: ``11.5 GiB``, ``9.2 MiB``, ``30 KiB``; the unit is the largest that shows a tenth or more.

    ``fine`` gives sizes below 10 GiB two decimals.
    """
    if size >= 2**30 // 10:
        return f"{size / 2**30:.2f} GiB" if fine and size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= unit // 10:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size} B"


def two_sizes(first: int, second: int) -> tuple[str, str]:
    """Two sizes to compare, as `size_text`; in MiB if they look equal otherwise, and differ."""
    texts = size_text(first), size_text(second)
    if texts[0] == texts[1] and first != second:
        return f"{first / 2**20:,.1f} MiB", f"{second / 2**20:,.1f} MiB"
    return texts


def either(words: Sequence[str]) -> str:
    """Words with "or" before the last: ``2, 4 or 8``."""
    return " or ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def counted(number: int, word: str) -> str:
    """A number of things for people: ``1 step``, ``2,000 steps``, ``3 classes``."""
    plural = f"{word}es" if word.endswith("s") else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"


def walltime_seconds(text: str) -> int:
    """Seconds of ``HH:MM``, ``HH:MM:SS`` or ``D-HH[:MM[:SS]]``.

    ``24:00`` is a day here, as on LSF and in the schema. Slurm itself would read 24 minutes, so a time emitted for it
    always has all its parts (:func:`slurm_time`).
    """
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def walltime_text(seconds: int) -> str:
    """``H:MM:SS``, as a spec takes it; from 10,000 hours on with days."""
    if seconds >= 36_000_000:
        return slurm_time(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def slurm_time(seconds: int) -> str:
    """``D-HH:MM:SS``, which Slurm can read in one way only."""
    return f"{seconds // 86_400}-{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def lsf_time(seconds: int) -> str:
    """``HH:MM``, rounded up: LSF's ``-W`` has no seconds."""
    minutes = -(-seconds // 60)
    return f"{minutes // 60}:{minutes % 60:02}"


def duration(seconds: int) -> str:
    """A time for people: ``2 days``, ``1 h 30 min``, ``90 s``."""
    if seconds < 120:
        return f"{seconds} s"
    days, hours, minutes, rest = seconds // 86_400, seconds // 3600 % 24, seconds // 60 % 60, seconds % 60
    parts = [
        f"{days} day{'s' if days > 1 else ''}" if days else "",
        f"{hours} h" if hours else "",
        f"{minutes} min" if minutes else "",
        f"{rest} s" if rest else "",
    ]
    return " ".join(part for part in parts if part)
