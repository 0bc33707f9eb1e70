"""Every place of a schema that takes text, so that a test can put hostile text there."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

#: A step into a list, or into a mapping with keys of the user's own.
ITEM, KEY = 0, "any_key"


def paths(schema: dict[str, Any]) -> list[tuple[str | int, ...]]:
    """The paths of all values that may be text, lists and mappings entered by one member."""
    return sorted(set(_under(schema, schema, ())), key=str)


def _under(schema: dict[str, Any], node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if not isinstance(node, dict) or len(path) > 8:
        return
    if "$ref" in node:
        yield from _under(schema, schema["$defs"][node["$ref"].rpartition("/")[2]], path)
    for branch in (*node.get("anyOf", ()), *node.get("allOf", ())):
        yield from _under(schema, branch, path)
    kinds = node.get("type", ())
    if "string" in ([kinds] if isinstance(kinds, str) else kinds) and "enum" not in node and "const" not in node:
        yield path
    for key, child in node.get("properties", {}).items():
        yield from _under(schema, child, (*path, key))
    yield from _under(schema, node.get("items"), (*path, ITEM))
    rest = node.get("additionalProperties")
    if rest is True:
        yield (*path, KEY)
    yield from _under(schema, rest, (*path, KEY))


def placed(tree: dict[str, Any], path: tuple[str | int, ...], text: str) -> dict[str, Any]:
    """A copy of the tree with the text at a path; what stands in the way is replaced."""
    tree = copy.deepcopy(tree)
    here: Any = tree
    for step, following in zip(path, (*path[1:], None), strict=True):
        value = text if following is None else [] if following == ITEM else {}
        if step == ITEM:
            here[:] = [value]
            here = here[0]
            continue
        if following is None or not isinstance(here.get(step), type(value)):
            here[step] = value
        here = here[step]
    return tree
