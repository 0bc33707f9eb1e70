"""The original framework's YAML: its keys are the spec's, as far as the spec still has them."""

from __future__ import annotations

from ratc import resources
from ratc.importers import keys
from ratc.importers.model import Carried, Item, Left
from ratc.schema import is_section, subschema
from ratc.yaml.parse import Document


def read(document: Document) -> tuple[Item, ...]:
    """Import each leaf under its own path. A key with a dot in it is not a path."""
    schema = resources.schema("experiment")
    items: list[Item] = []
    for names, node in keys.leaves(document.root):
        source, span = ".".join(names), keys.place(node)
        if any("." in name for name in names) or not source or subschema(schema, source) is None:
            items.append(Left(source or "the file", span, keys.UNKNOWN))
        elif is_section(subschema(schema, source) or {}) and node.value is not None:
            empty = isinstance(node.value, dict)
            items.append(Left(source, span, "it is empty" if empty else "it must be a mapping of keys", empty))
        else:
            items.append(Carried(source, node.data(), span, source))
    return tuple(items)
