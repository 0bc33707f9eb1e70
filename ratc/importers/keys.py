"""Imports the leaves of YAML and JSON files by a table of keys, so that none is lost silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ratc.diagnostics import Span
from ratc.importers.model import Carried, Item, Left
from ratc.yaml.parse import Document, Node

#: A path of the spec, or a function that returns path and value (or, as text, why the value is left).
Target = str | Callable[[object], "tuple[str, object] | str"]
OPEN = "left open: ratc chooses it"
UNKNOWN = "the spec has no such key"
OFF = "it is off"


def leaves(node: Node, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Node]]:
    """Every node that is not a non-empty mapping, under its keys."""
    if isinstance(node.value, dict) and node.value:
        for key, child in node.value.items():
            yield from leaves(child, (*keys, key))
    else:
        yield keys, node


def place(node: Node) -> Span:
    """Return the place of a leaf: its key's, or its own."""
    return node.key_span or node.span


def read(document: Document, table: Mapping[str, Target], unneeded: Mapping[str, str]) -> tuple[Item, ...]:
    """Import each leaf by the table; ``unneeded`` are the keys that ratc decides itself, with reasons."""
    return tuple(_item(keys, node, table, unneeded) for keys, node in leaves(document.root) if keys)


def _item(keys: tuple[str, ...], node: Node, table: Mapping[str, Target], unneeded: Mapping[str, str]) -> Item:
    source, span, value = ".".join(keys), place(node), node.data()
    if value == "auto" or (value is None and source in table):
        return Left(source, span, OPEN, deliberate=True)
    if source in unneeded or (keys and keys[0] in unneeded):
        return Left(source, span, unneeded.get(source) or unneeded[keys[0]], deliberate=True)
    target = table.get(source)
    if target is None:
        return Left(source or "the file", span, UNKNOWN)
    if isinstance(target, str):
        return Carried(target, value, span, source)
    made = target(value)
    return Left(source, span, made, deliberate=made == OFF) if isinstance(made, str) else Carried(*made, span, source)
