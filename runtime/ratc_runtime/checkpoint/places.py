"""Where in a run a checkpoint was made: its name, its order, and which ones are kept.

Order comes from the name alone. Clocks jump, and a copy changes the times of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{6,})")


class Place(NamedTuple):
    """So many whole epochs, evaluated, and so many optimizer steps of the next one. Places compare in that order."""

    epoch: int
    step: int

    @property
    def name(self) -> str:
        """The checkpoint's name without a suffix; names sort as their places do."""
        return f"epoch-{self.epoch:04}-step-{self.step:06}"

    @classmethod
    def of(cls, progress: dict[str, Any]) -> Place:
        """The place of a run's progress."""
        return cls(progress["epoch"], progress["step"])


def place_of(name: str, suffix: str) -> Place | None:
    """Return the place that a file's name says; None for any other file."""
    match = _NAME.fullmatch(name.removesuffix(suffix)) if name.endswith(suffix) else None
    return Place(int(match[1]), int(match[2])) if match else None


def places_in(folder: Path, suffix: str) -> list[Place]:
    """Return the places of the checkpoints in `folder`, newest first; none if there is no folder."""
    try:
        found = [place_of(path.name, suffix) for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((place for place in found if place is not None), reverse=True)


def to_keep(present: Iterable[Place], best: Sequence[Place], last: int, most: int) -> set[Place]:
    """Return the `last` newest of the places that are present, and the first `most` of `best` among them."""
    there = sorted(present, reverse=True)
    return {*there[:last], *[place for place in best if place in there][:most]}
