"""A comparison as JSON for machines. docs/guides/diff.md describes it; ``version`` counts up when it changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ratc import markup
from ratc.comparison import words
from ratc.comparison.model import Change, Comparison, Side
from ratc.plan import Value
from ratc.secrets.redact import plain

VERSION = 1


def document(comparison: Comparison) -> str:
    """The whole comparison; paths, values and reasons are those of the plan."""
    tree = {
        "version": VERSION,
        "same": comparison.is_empty,
        "old": _side(comparison.old),
        "new": _side(comparison.new),
        "effects": [effect.value for effect in comparison.effects],
        "verdict": words.verdict(comparison),
        "remarks": list(comparison.remarks),
        "amounts": [{"what": amount.what, "old": amount.old, "new": amount.new} for amount in comparison.amounts],
        "changes": list(_changes(comparison)),
    }
    return markup.json(tree)


def _side(side: Side) -> dict[str, Any]:
    return {"name": side.name, "target": side.target, "ratc_version": side.ratc_version, "lock_only": side.is_lock}


def _changes(comparison: Comparison) -> Iterator[dict[str, Any]]:
    groups = (("source", comparison.sources), ("plan", comparison.changes), ("surroundings", comparison.outside_plan))
    for kind, changes in groups:
        for change in changes:
            yield {
                "kind": kind,
                "path": change.path,
                "formerly": change.formerly,
                "old": _value(change, change.old),
                "new": _value(change, change.new),
                "effects": [effect.value for effect in change.effects],
                "meaning": change.meaning,
                "causes": list(change.causes),
            }


def _value(change: Change, value: Value | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "value": plain(change.path, value.value),
        "origin": value.origin,
        "why": words.why(value),
        "place": value.span.place if value.span else None,
    }
