"""Trials that are proposed one after the other: values -> a point of the study, and points that represent all before.

Values on a logarithmic or linear range are rounded to four digits, as those of a spread are: a person reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

from ratc.sweep import Point
from ratc.tuning.space import Choices, Range, number_at, point_of
from ratc.yaml.parse import Node

#: Combinations of choices and whole numbers that are resolved before a study starts.
MOST_COMBINATIONS = 1000
#: Whole numbers of a range that are looked at, its ends among them.
_WHOLE = 9


def point(index: int, space: Sequence[Choices | Range], values: Mapping[str, Any]) -> Point:
    """The point of proposed values: of choices the index, of ranges the number, by path."""
    return point_of(index, tuple((entry.path, _node(entry, values[entry.path])) for entry in space))


def standing_for(space: Sequence[Choices | Range]) -> tuple[Point, ...]:
    """Return points that represent a study before its trials are known: every combination of choices and whole numbers,
    with real numbers in the middle of their ranges. If there are too many, fewer of the whole numbers.
    """
    for whole in (_WHOLE, 3, 2, 1):
        lists = [list(_candidates(entry, whole)) for entry in space]
        if prod(map(len, lists)) <= MOST_COMBINATIONS:
            break
    paths = [entry.path for entry in space]
    combinations = list(product(*lists))[:MOST_COMBINATIONS]
    return tuple(point_of(index, tuple(zip(paths, nodes, strict=True))) for index, nodes in enumerate(combinations, 1))


def alike(space: Sequence[Choices | Range], one: Point, other: Point) -> bool:
    """Whether two points differ in real numbers alone."""
    kept = [entry.path for entry in space if isinstance(entry, Choices) or entry.whole]
    left, right = dict(one.nodes), dict(other.nodes)
    return all(repr(left[path].data()) == repr(right[path].data()) for path in kept)


def _candidates(entry: Choices | Range, whole: int) -> Sequence[Node]:
    if isinstance(entry, Choices):
        return entry.nodes
    if not entry.whole:
        return [number_at(entry, 0.5)]
    shares = [0.0] if whole == 1 else [step / (whole - 1) for step in range(whole)]
    nodes = [number_at(entry, min(share, 0.999999)) for share in shares]
    return [node for index, node in enumerate(nodes) if node.value not in [other.value for other in nodes[:index]]]


def _node(entry: Choices | Range, value: Any) -> Node:
    if isinstance(entry, Choices):
        return entry.nodes[int(value)]
    if entry.whole:
        return replace(entry.node, value=int(value))
    return replace(entry.node, value=min(max(float(f"{value:.3e}"), entry.low), entry.high))
