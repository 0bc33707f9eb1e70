"""The texts of a comparison for every form: the meaning of effects, a value on one line, its origin and reason."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ratc.comparison.model import Change, Comparison
from ratc.comparison.order import Line
from ratc.plan import Value
from ratc.secrets.redact import redact
from ratc.secrets.redact import shown as secret_free
from ratc.spec.keys import Effect
from ratc.units import duration, size_text

#: The words for an effect beside a change.
LABELS = {
    Effect.TRAINING: "changes training",
    Effect.RESUME: "breaks resume",
    Effect.MEMORY: "memory",
    Effect.COST: "cost",
    Effect.PLACEMENT: "placement",
    Effect.COSMETIC: "cosmetic",
}
#: Twelve digits of a digest tell files apart.
_DIGEST = re.compile(r"\b(sha256:[0-9a-f]{12})[0-9a-f]{52}\b")
#: Causes that are named; the others are counted.
_CAUSES = 3
#: A value longer than this hides the others.
_WIDTH = 60
#: Characters that two long values have in common before their first difference, and that are shown.
_BEFORE = 15
#: Stands for a value that a side does not have.
ABSENT = "—"


def verdict(comparison: Comparison) -> list[str]:
    """Return the summary for a reviewer: a sentence on whether training changes, and one on old checkpoints."""
    if comparison.is_empty:
        return ["Nothing differs."]
    effects = comparison.effects
    elsewhere = any(change.path == "data.data_dir" for change in comparison.changes)
    same = "It trains the same if the data are the same." if elsewhere else "It trains the same."
    trains = "It trains something else." if Effect.TRAINING in effects else same
    resume = (
        "Checkpoints of the old run are refused."
        if Effect.RESUME in effects
        else "An old run is continued from its checkpoint."
    )
    is_program = any("entrypoint.program" in side.values for side in (comparison.old, comparison.new))
    if is_program and Effect.RESUME in effects:
        resume = "Whether it continues from checkpoints of the old run is up to the program."
    if Effect.RESUME not in effects and any(change.path.startswith("point ") for change in comparison.outside_plan):
        trains, resume = "Other points are trained.", "Unchanged points are continued from their checkpoints."
    if comparison.remarks and comparison.remarks[0].startswith("these are two experiments"):
        return [trains]
    return [trains, resume]


def shown(change: Change) -> tuple[str, str]:
    """Return the old and the new value on one line each, without secrets; a dash if there is none."""
    old, new = _inline(change.old, change.path), _inline(change.new, change.path)
    if old == new and change.formerly is None:  # too close for a rounded size
        old, new = _inline(change.old, change.path, fine=True), _inline(change.new, change.path, fine=True)
    if old == new and change.formerly is None:
        old, new = _inline(change.old, ""), _inline(change.new, "")
    if change.path.startswith("point "):
        return old, new
    shorter = min(len(old), len(new))  # where they differ if one begins like the whole other
    same = next((number for number in range(shorter) if old[number] != new[number]), shorter)
    # Long values that begin alike are shown from shortly before their first difference.
    start = max(0, same - _BEFORE) if same >= _WIDTH - 1 else 0
    return _cut(old, start), _cut(new, start)


def _cut(text: str, start: int) -> str:
    text = f"…{text[start:]}" if start else text
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…"


def _inline(value: Value | None, path: str, fine: bool = False) -> str:
    if value is None:
        return ABSENT
    if path.startswith("point ") and isinstance(value.value, str):
        return redact(value.value)
    return _DIGEST.sub(r"\1", _measured(value.value, path, fine) or secret_free(path, value.value))


def _measured(value: object, path: str, fine: bool = False) -> str:
    """Return a size or a time for people; "" for any other value."""
    if isinstance(value, bool) or not isinstance(value, int):
        return ""
    if re.search(r"_bytes(_|$)", path):
        return size_text(value, fine)
    return duration(value) if path.endswith("_seconds") and value else ""


def labels(change: Change) -> list[str]:
    """The effects in words."""
    return [LABELS[effect] for effect in change.effects]


def why(value: Value | None) -> str:
    """Return the place of a given value, the reason of a derived one, or "the default"; empty for None."""
    if value is None:
        return ""
    if value.origin == "derived":
        return redact(value.reason)
    if value.origin == "default":
        return "the default"
    if value.span is None:
        return redact(value.reason or value.origin)
    return value.span.place


def reasons(line: Line) -> Iterator[tuple[str, str]]:
    """Yield origins or reasons, each with a word before it; nothing if both sides have the same reason."""
    told = line.given is not None and line.given.path.startswith("facts:")
    change = line.given if told and line.given else line.change
    old, new = why(change.old), why(change.new)
    if change.old and change.new and old == new:
        return
    if old and new and _is_given(change.old) and _is_given(change.new):
        yield "at", f"{old} → {new}"
        return
    if old:
        yield "was", old
    if new:
        yield ("is" if change.old else "from"), new


def _is_given(value: Value | None) -> bool:
    return value is not None and value.origin != "derived" and value.span is not None


def others(line: Line) -> str:
    """Return a text on the line's grouped changes, the values that only one side has; empty if there are none."""
    side = "old" if line.change.new is None else "new"
    told = [f"{change.name.rpartition('.')[2]} {shown(change)[side == 'new']}" for change in line.others]
    return f"and {len(told)} more that only the {side} side has: {', '.join(told)}" if told else ""


def other_causes(line: Line) -> str:
    """Return the causes that are listed elsewhere, the first few by name."""
    names = [path.removeprefix("spec:").removeprefix("facts:") for path in line.also]
    more = f" and {len(names) - _CAUSES} more" if len(names) > _CAUSES else ""
    return ", ".join(names[:_CAUSES]) + more


def formerly(change: Change) -> str:
    """The path that a value had before, without its kind."""
    return (change.formerly or "").removeprefix("spec:")


def name(change: Change) -> str:
    """Return the path as people write it; facts are marked as such."""
    return f"{change.name} (facts)" if change.path.startswith("facts:") else change.name
