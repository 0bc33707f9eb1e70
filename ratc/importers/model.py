"""The items of an import: values for the spec, and items without a place in it, each with its source line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ratc.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Carried:
    """A value for a path of the spec. ``source`` is the key, the directive or the command that says it."""

    path: str
    value: Any
    span: Span
    source: str


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


def is_masked(value: str) -> bool:
    """Whether a value has stars that stand for a secret of the file. One or two are a pattern: `NO_PROXY=*`."""
    return "***" in value
