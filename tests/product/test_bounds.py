"""A lock holds no number that its spec could not: the runtime refuses in an edited lock what the compiler refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.places import ROOT

#: Bounds of a number: the smallest and the largest, and whether these are excluded themselves.
Bounds = tuple[tuple[float, bool], tuple[float, bool]]


def numbers(name: str) -> dict[str, Bounds]:
    """The bounds of every number of a schema by its path; the widest of several forms."""
    schema = json.loads((ROOT / "schemas" / f"{name}.schema.json").read_text())
    found: dict[str, Bounds] = {}
    for path, node in _nodes(schema, schema, "", 8):
        if node.get("type") in ("integer", "number"):
            low = max((node.get("minimum", -math.inf), False), (node.get("exclusiveMinimum", -math.inf), True))
            high = min((node.get("maximum", math.inf), True), (node.get("exclusiveMaximum", math.inf), False))
            if node["type"] == "integer" and low[1]:
                low = (low[0] + 1, False)
            known = found.get(path, (low, high))
            found[path] = min(known[0], low), max(known[1], high)
    return found


def _nodes(schema: Any, node: Any, path: str, deep: int) -> Iterator[tuple[str, Any]]:
    if "$ref" in node:
        node = {**schema["$defs"][node["$ref"].rpartition("/")[2]], **node}
    yield path, node
    if not deep:
        return
    for form in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from _nodes(schema, form, path, deep - 1)
    for key, inner in node.get("properties", {}).items():
        yield from _nodes(schema, inner, f"{path}.{key}" if path else key, deep - 1)
    if isinstance(node.get("items"), dict):
        yield from _nodes(schema, node["items"], f"{path}[]", deep - 1)


SPEC, LOCK = numbers("experiment"), numbers("lock")


@pytest.mark.parametrize("path", sorted(SPEC.keys() & LOCK.keys()))
def test_a_number_of_the_lock_has_the_bounds_of_the_spec(path: str) -> None:
    (spec_low, spec_high), (lock_low, lock_high) = SPEC[path], LOCK[path]
    assert lock_low >= spec_low
    assert lock_high <= spec_high


def test_the_paths_of_both_are_compared() -> None:
    assert {"training.betas[]", "training.weight_decay", "data.folds.seed"} <= SPEC.keys() & LOCK.keys()
