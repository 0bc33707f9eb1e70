"""The items of an import: values for the spec, and items without a place in it, each with its source line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ratc.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Carried:
    """A value for a path of the spec. ``source`` is the key, the directive or the command that says it.

    A value that ``is_assumed`` counts only if no file gives one.
    """

    path: str
    value: Any
    span: Span
    source: str
    is_assumed: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """An item that was not carried over, and why. ``deliberate`` if nothing is lost: ratc derives it itself."""

    source: str
    span: Span
    why: str
    deliberate: bool = False


Item = Carried | Left
#: Of a value that is not copied.
OF_A_SECRET = "it looks like a secret, and is not copied: name it under `environment.secrets`"


#: A character of a secret while a script is read: a star may be the script's own, as in `NO_PROXY=*`.
MARK = "\ue000"


def marked(text: str, shown: str) -> str:
    """Return a text with marks at the places that ``shown``, of the same length, has starred out."""
    pairs = zip(text, shown, strict=True)
    return "".join(MARK if star == "*" and own != "*" else star for own, star in pairs)


def is_masked(value: str) -> bool:
    """Whether a part of a value is a secret of the file."""
    return MARK in value


def unmarked(item: Item) -> Item:
    """Return an item as people may see it: with stars for marks."""
    source = item.source.replace(MARK, "*")
    if isinstance(item, Left):
        return replace(item, source=source, why=item.why.replace(MARK, "*"))
    return replace(item, source=source, value=_stars(item.value))


def _stars(value: Any) -> Any:
    if isinstance(value, list):
        return [_stars(item) for item in value]
    return value.replace(MARK, "*") if isinstance(value, str) else value
