"""The position of a checkpoint in its run: names, order, and which checkpoints are kept.

The order follows from the name alone: clocks jump, and a copy changes the times of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{6,})")


class Place(NamedTuple):
    """A number of whole, evaluated epochs and of optimizer steps of the next one. Places compare in that order."""

    epoch: int
    step: int

    @property
    def name(self) -> str:
        """The checkpoint's name without a suffix. Names sort like their places."""
        return f"epoch-{self.epoch:04}-step-{self.step:06}"

    @classmethod
    def of(cls, progress: dict[str, Any]) -> Place:
        """The place of a run's progress."""
        return cls(progress["epoch"], progress["step"])


def place_of(name: str, suffix: str) -> Place | None:
    """Return the place encoded in a file's name; None for any other file."""
    match = _NAME.fullmatch(name.removesuffix(suffix)) if name.endswith(suffix) else None
    return Place(int(match[1]), int(match[2])) if match else None


def places_in(folder: Path, suffix: str) -> list[Place]:
    """Return the places of the checkpoints in `folder`, newest first; empty if the folder does not exist."""
    try:
        found = [place_of(path.name, suffix) for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((place for place in found if place is not None), reverse=True)


def to_keep(present: Iterable[Place], best: Sequence[Place], last: int, most: int) -> set[Place]:
    """Return the `last` newest of the present places, and the first `most` of `best` that are present."""
    there = sorted(present, reverse=True)
    return {*there[:last], *[place for place in best if place in there][:most]}
