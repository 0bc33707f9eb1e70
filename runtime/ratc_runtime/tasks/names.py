"""The names of classes, if data sets have some of their own: checkpoints keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ratc_runtime.errors import RuntimeFinding

if TYPE_CHECKING:
    from ratc_runtime.tasks.base import Task


def named_alike(names: list[str], unnamed: list[str], datasets: Mapping[str, Any]) -> list[str]:
    """Return the names that the data sets' `class_names` give, or `names`; raise R539 if they differ.

    `names` are the lock's; if they are `unnamed`, nobody gave some.
    """
    given = {split: list(data.class_names) for split, data in datasets.items() if hasattr(data, "class_names")}
    if names != unnamed:
        given = {"the run": names, **given}
    first = next(iter(given.values()), names)
    for split, found in given.items():
        if found != first:
            raise RuntimeFinding(
                "R539",
                f"the classes of {split} are not those of {next(iter(given))}",
                f"{', '.join(found[:20])}; {', '.join(first[:20])}",
                "give every split the same classes in the same order; if `data.class_names` is given, it names them in"
                " that order",
            )
    return first if len(first) == len(names) else names


def of_task(task: Task) -> dict[str, list[str]]:
    """Return the classes' names of each part of a task, or of the task alone as the part `""`."""
    parts = _parts(task).items()
    return {name: list(part.class_names) for name, part in parts if hasattr(part, "class_names")}


def give(task: Task, names: object) -> None:
    """Give a task the names that a checkpoint has. Anybody may have written it: what does not fit is left."""
    for name, part in _parts(task).items():
        given = names.get(name) if isinstance(names, dict) else None
        known = getattr(part, "class_names", None)
        if known is not None and isinstance(given, list) and len(given) == len(known):
            part.class_names = [text if isinstance(text, str) else old for text, old in zip(given, known, strict=True)]


def _parts(task: Task) -> dict[str, Any]:
    return dict(task.parts) or {"": task}
