"""Checks that a schema cannot make: one file a rule, each with one pure ``check(settings)``, registered here."""

from __future__ import annotations

from ratc.diagnostics import Diagnostic
from ratc.plan import Values
from ratc.rules import (
    augmentations,
    classes,
    custom,
    detection,
    dimensions,
    exclusive,
    grid,
    heads,
    ineffective,
    metric,
    model_arguments,
    readonly,
    scales,
    secrets,
    unavailable,
)

RULES = (
    custom,
    detection,
    exclusive,
    heads,
    model_arguments,
    scales,
    secrets,
    readonly,
    unavailable,
    ineffective,
    grid,
    metric,
    augmentations,
    dimensions,
    classes,
)


def check(settings: Values) -> tuple[Diagnostic, ...]:
    """What every rule finds, in the order of the file."""
    found = [diagnostic for rule in RULES for diagnostic in rule.check(settings)]
    return tuple(sorted(found, key=_line))


def _line(diagnostic: Diagnostic) -> tuple[str, int]:
    return (diagnostic.span.source.name, diagnostic.span.line) if diagnostic.span else ("", 0)
