"""The names `package.module:callable` in a spec: code of the user's, or of an installed package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ratc.plan import Value, Values
from ratc.program import command_line, is_program

#: The settings that may name one; `tasks.NAME.…` are those of one of several tasks.
_KEYS = ("model.name", "data.dataset", "training.loss", "training.optimizer")
_OF_A_TASK = re.compile(r"tasks\.[^.]+\.(loss|data\.dataset)")
#: The part of a module that is in no function and no class.
REST = "<module>"
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def named(settings: Values) -> Iterator[tuple[str, Value]]:
    """Yield every name in the settings themselves: its path, and the value that holds it."""
    for path, value in settings.items():
        is_of_a_task = path.startswith("tasks.") and _OF_A_TASK.fullmatch(path)
        if (path in _KEYS or is_of_a_task) and isinstance(value.value, str) and ":" in value.value:
            yield path, value
        elif path == "evaluation.scores":
            for name in (value.value or {}).values():
                yield path, Value(name, value.origin, span=value.span)
        elif path == "training.callbacks":
            for name, _ in callbacks(value):
                yield path, Value(name, value.origin, span=value.span)


def callbacks(value: Value) -> list[tuple[str, dict[str, Any]]]:
    """Return the name and the arguments of each entry of `training.callbacks`."""
    entries = ({entry: {}} if isinstance(entry, str) else entry for entry in value.value or ())
    return [(str(name), dict(args or {})) for entry in entries for name, args in entry.items()]


def of_all_points(settings: Values) -> list[str]:
    """Return the names in the settings, in an `entrypoint`, and in every point of their sweep or study, sorted. Other
    text of a study that looks like a name is included.
    """
    found = {str(value.value) for _, value in named(settings)}
    if is_program(settings):
        found.add(command_line(settings))
    for path, value in settings.items():
        if path.startswith(("sweep", "tuning")):
            found |= {text for text in _texts(value.value) if _NAME.fullmatch(text)}
    return sorted(found)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def moved(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """Describe the differences between two records of one module, `digest` and `parts`; "" if there are none."""
    if old is None or new is None:
        return "is newly used" if old is None else "is gone, or no longer used"
    if old.get("digest") == new.get("digest"):
        return ""
    before, after = old.get("parts") or {}, new.get("parts") or {}
    told = [
        f"`{name}` {'changed' if name in before and name in after else 'is new' if name in after else 'is gone'}"
        for name in sorted({*before, *after} - {REST})
        if before.get(name) != after.get(name)
    ]
    if before.get(REST) != after.get(REST):
        told.append("code outside of functions and classes changed")
    if not told:
        told.append(
            "its content changed"
            if not (before and after)
            else "only comments, blank lines or the order of definitions changed"
        )
    return ", ".join(told)
