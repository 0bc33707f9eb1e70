"""Sizes and numbers for people."""

from __future__ import annotations


def size_text(size: int) -> str:
    """Return bytes with the largest unit that shows a tenth or more: `1.25 GiB`, `9.2 MiB`, `30 KiB`."""
    if size >= 2**30 // 10:
        return f"{size / 2**30:.2f} GiB"
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if size >= unit // 10:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size} B"


def counted(number: int, word: str) -> str:
    """Return a number of things: `1 step`, `2,000 steps`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
