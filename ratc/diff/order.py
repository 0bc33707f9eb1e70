"""Puts a comparison's changes into the order in which a reviewer reads them: each behind what it follows from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ratc.diff.compare import same
from ratc.diff.model import Change, Comparison
from ratc.explain import RENAMED


@dataclass(frozen=True, slots=True)
class Line:
    """One change with its depth below what a person changed. ``also`` are causes that stand elsewhere; ``given`` is
    the setting that a value of the plan repeats, so that the two are told as one.
    """

    depth: int
    change: Change
    also: tuple[str, ...] = ()
    given: Change | None = None


def lines(comparison: Comparison) -> list[Line]:
    """Every source and every change once: sources in their order, below each what follows from it."""
    known = {change.path: change for change in (*comparison.sources, *comparison.changes)}
    below: dict[str | None, list[Change]] = {}
    for change in known.values():
        below.setdefault(_closest(change, known), []).append(change)
    told: list[Line] = []
    for root in below.get(None, []):
        told += _under(root, 0, below, known)
    return told


def _closest(change: Change, known: dict[str, Change]) -> str | None:
    """The cause under which a change stands: the setting that it keeps, or the first that leads to no other cause."""
    causes = [path for path in change.causes if path in known]
    kept = next((path for path in causes if _repeats(known[path], change)), None)
    if kept is not None:
        return kept
    above = {path for cause in causes for path in _above(cause, known)}
    return next((path for path in causes if path not in above), None)


def _above(path: str, known: dict[str, Change]) -> set[str]:
    """All that a change follows from, however far."""
    found: set[str] = set()
    ahead = [path]
    while ahead:
        causes = [cause for cause in known[ahead.pop()].causes if cause in known and cause not in found]
        found.update(causes)
        ahead += causes
    return found


def _under(
    change: Change, depth: int, below: dict[str | None, list[Change]], known: dict[str, Change]
) -> Iterator[Line]:
    children = below.get(change.path, [])
    repeat = next((child for child in children if _repeats(change, child)), None)
    if repeat is not None:
        yield Line(depth, repeat, given=change)
        children = [*below.get(repeat.path, []), *(child for child in children if child is not repeat)]
    else:
        closest = _closest(change, known)
        above = {closest, *(_above(closest, known) if closest else ())}
        also = tuple(cause for cause in change.causes if cause in known and cause not in above)
        yield Line(depth, change, also)
    for child in children:
        yield from _under(child, depth + 1, below, known)


def _repeats(source: Change, child: Change) -> bool:
    """Whether a value of the plan is the setting itself, kept as it is wherever the spec gives one."""
    name = source.name
    if not source.path.startswith("spec:") or not (child.old and child.new):
        return False
    if child.path not in (RENAMED.get(name, name), name, name.replace("model.", "model.args.", 1)):
        return False
    pairs = ((source.old, child.old), (source.new, child.new))
    return all(given is None or given.value is None or _kept(given.value, kept.value) for given, kept in pairs)


def _kept(given: Any, kept: Any) -> bool:
    """Whether the plan says what the spec does: one number may stand for one on each axis."""
    return same(given, kept) or (isinstance(kept, (list, tuple)) and all(same(given, item) for item in kept))
