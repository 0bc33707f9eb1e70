"""R206: what the schema describes and this version does not do yet. It is said, never left out in silence."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """A study is left to the person."""
    if any(path.startswith("tuning") and settings[path].value is not None for path in settings):
        span = next(
            (settings[path].span for path in settings if path.startswith("tuning") and settings[path].span),
            None,
        )
        message = "this version runs no studies: `tuning` is read and not acted upon"
        yield Diagnostic("R206", message, span, severity=Severity.WARNING)
