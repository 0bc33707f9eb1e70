"""Puts a comparison's changes into the order in which a reviewer reads them: each behind its cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ratc.comparison import sizes
from ratc.comparison.compare import same
from ratc.comparison.model import Change, Comparison
from ratc.plan import Value
from ratc.spec import keys

#: So many values in a row that one side alone has are told together.
_MANY = 3


@dataclass(frozen=True, slots=True)
class Line:
    """One change with its depth below a person's change.

    ``also`` are causes that stand elsewhere. ``given`` is the setting or fact that a value of the plan repeats: the two
    are shown as one. ``others`` are similar changes, of values that only the same side has.
    """

    depth: int
    change: Change
    also: tuple[str, ...] = ()
    given: Change | None = None
    others: tuple[Change, ...] = ()


def lines(comparison: Comparison) -> list[Line]:
    """Return every source and every change once: sources in their order, below each its consequences. Those of an
    elastic plan's rows are left out: `sizes` has their table.
    """
    plan = (change for change in comparison.changes if not sizes.of_a_row(change.path))
    known = {change.path: change for change in (*comparison.sources, *plan)}
    below: dict[str | None, list[Change]] = {}
    for change in known.values():
        below.setdefault(_closest(change, known), []).append(change)
    told: list[Line] = []
    for root in below.get(None, []):
        told += _lines_below(root, 0, below, known)
    return list(_together(told))


def _together(told: list[Line]) -> Iterator[Line]:
    """Join consecutive lines of the same kind, without consequences, to one line."""
    ends = [line.depth for line in told[1:]] + [0] * bool(told)
    group: list[Line] = []
    for line, following in zip(told, ends, strict=True):
        leaf = following <= line.depth
        if not leaf or (group and _kind(line) != _kind(group[0])):
            yield from _merged(group)
            group = []
        if leaf and _kind(line)[2] != "both":
            group.append(line)
        else:
            yield line
    yield from _merged(group)


def _kind(line: Line) -> tuple[int, str, str]:
    change = line.change
    side = "old" if change.new is None else "new" if change.old is None else "both"
    return line.depth, change.path.rpartition(".")[0], side


def _merged(group: list[Line]) -> Iterator[Line]:
    if len(group) < _MANY:
        yield from group
    else:
        yield replace(group[0], others=tuple(line.change for line in group[1:]))


def _closest(change: Change, known: dict[str, Change]) -> str | None:
    """Return the cause under which a change is listed: the setting that it keeps, or the first immediate cause."""
    causes = [path for path in change.causes if path in known]
    kept = next((path for path in causes if _repeats(known[path], change)), None)
    if kept is not None:
        return kept
    above = {path for cause in causes for path in _all_causes(cause, known)}
    return next((path for path in causes if path not in above), None)


def _all_causes(path: str, known: dict[str, Change]) -> set[str]:
    """Return all direct and indirect causes of a change."""
    found: set[str] = set()
    ahead = [path]
    while ahead:
        causes = [cause for cause in known[ahead.pop()].causes if cause in known and cause not in found]
        found.update(causes)
        ahead += causes
    return found


def _lines_below(
    change: Change, depth: int, below: dict[str | None, list[Change]], known: dict[str, Change]
) -> Iterator[Line]:
    children = below.get(change.path, [])
    repeat = next((child for child in children if _repeats(change, child)), None)
    if repeat is not None:
        yield Line(depth, repeat, given=change)
        children = [*below.get(repeat.path, []), *(child for child in children if child is not repeat)]
    else:
        closest = _closest(change, known)
        above = {closest, *(_all_causes(closest, known) if closest else ())}
        also = tuple(cause for cause in change.causes if cause in known and cause not in above)
        yield Line(depth, change, also)
    for child in children:
        yield from _lines_below(child, depth + 1, below, known)


def _repeats(source: Change, child: Change) -> bool:
    """Whether a value of the plan is the setting or the fact itself, kept as it is on each side that has one."""
    kind, _, name = source.path.partition(":")
    if kind == "spec":
        alike = child.path in (keys.renamed().get(name, name), name, name.replace("model.", "model.args.", 1))
    elif kind == "facts":
        alike = name.rpartition(".")[2] == child.path.rpartition(".")[2] or name == "card.id"
    else:
        return False
    return alike and _matches_plan(source.old, child.old) and _matches_plan(source.new, child.new)


def _matches_plan(given: Value | None, kept: Value | None) -> bool:
    if kept is None:  # the plan leaves an empty list out
        return given is None or given.value == []
    return given is None or given.value is None or _kept(given.value, kept.value)


def _kept(given: Any, kept: Any) -> bool:
    """Whether the plan's value equals the spec's. A number equals a list that has it for each axis."""
    return same(given, kept) or (isinstance(kept, (list, tuple)) and all(same(given, item) for item in kept))
