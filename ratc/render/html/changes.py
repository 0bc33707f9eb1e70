"""A comparison as trees for the page: each change by a person with both sides, and its consequences folded below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ratc.comparison import words
from ratc.comparison.model import Change, Comparison
from ratc.comparison.order import Line, lines
from ratc.spec.keys import Effect
from ratc.units import counted


@dataclass(frozen=True, slots=True)
class Badge:
    """An effect: its key for the colour, its words for everybody."""

    key: str
    words: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of one side, and its origin or reason."""

    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Node:
    """One change with its consequences. ``notes`` are sentences beside the values."""

    name: str
    old: Cell
    new: Cell
    badges: tuple[Badge, ...]
    meaning: str
    notes: tuple[str, ...]
    below: tuple[Node, ...]

    @property
    def effects(self) -> str:
        """Keys of the effects of this change and of all below it, for the filter."""
        keys = {badge.key for node in self._all() for badge in node.badges}
        return " ".join(effect.value for effect in Effect if effect.value in keys)

    @property
    def follows(self) -> str:
        """How many changes follow; empty for none."""
        many = len(self._all()) - 1
        return f"{counted(many, 'more value')} follow{'s' if many == 1 else ''}" if many else ""

    def _all(self) -> list[Node]:
        return [self, *(node for child in self.below for node in child._all())]


@dataclass(frozen=True, slots=True)
class Summary:
    """How many changes have an effect."""

    badge: Badge
    many: int


def roots(comparison: Comparison) -> tuple[Node, ...]:
    """Return the changes by people or hardware, each with its consequences; then the differences outside the plans."""
    told = lines(comparison)
    found: list[Node] = []
    at = 0
    while at < len(told):
        node, at = _tree(told, at)
        found.append(node)
    return (*found, *(_outside_node(change) for change in comparison.outside_plan))


def summary(comparison: Comparison) -> list[Summary]:
    """The effects that there are, the worst first, with the number of changes that have them."""
    told = [line.change for line in lines(comparison)] + list(comparison.outside_plan)
    many = {effect: sum(effect in change.effects for change in told) for effect in comparison.effects}
    return [Summary(_badge(effect), count) for effect, count in many.items() if count]


def _tree(told: Sequence[Line], at: int) -> tuple[Node, int]:
    """Return the node of the line at ``at``, and the index of the next line of its depth or above."""
    line, below = told[at], []
    at += 1
    while at < len(told) and told[at].depth > line.depth:
        node, at = _tree(told, at)
        below.append(node)
    return _node(line, tuple(below)), at


def _node(line: Line, below: tuple[Node, ...]) -> Node:
    change = line.change
    # A fact names its source; the value that repeats it does not.
    told = line.given if line.given and line.given.path.startswith("facts:") else change
    old, new = words.shown(change)
    notes = []
    if change.formerly is not None:
        notes.append(f"formerly {words.formerly(change)}")
    if line.also:
        notes.append(f"follows from {words.other_causes(line)}, too")
    if line.others:
        notes.append(words.others(line))
    return Node(
        words.name(change),
        Cell(old, words.why(told.old)),
        Cell(new, words.why(told.new)),
        tuple(map(_badge, change.effects)),
        change.meaning,
        tuple(notes),
        below,
    )


def _outside_node(change: Change) -> Node:
    old, new = words.shown(change)
    badges = tuple(map(_badge, change.effects))
    return Node(change.name, Cell(old, ""), Cell(new, ""), badges, change.meaning, (), ())


def _badge(effect: Effect) -> Badge:
    return Badge(effect.value, words.LABELS[effect])
