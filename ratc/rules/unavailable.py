"""R206: what the schema describes and this version does not do yet. It is said, never left out in silence."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Ray is left to the person."""
    spans = [settings[path].span for path in settings if path.startswith("tuning.") and settings[path].span]
    if spans and settings["tuning.backend"].value == "ray":
        message = "this version does not run Ray: `tuning` is checked and not acted upon"
        helps = ("`backend: array` runs the trials as an array job, or with `ratc tune`",)
        yield Diagnostic("R206", message, spans[0], helps=helps, severity=Severity.WARNING)
