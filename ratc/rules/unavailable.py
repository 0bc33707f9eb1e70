"""R206: what the schema describes and this version does not do yet. It is said, never left out in silence."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Detection is refused; a study is left to the person."""
    if settings["task_type"].value == "detection":
        message = "this version trains segmentation only, not detection"
        yield Diagnostic("R206", message, settings["task_type"].span, helps=("use `task_type: segmentation`",))
    if any(path.startswith("tuning") and settings[path].value is not None for path in settings):
        span = next(
            (settings[path].span for path in settings if path.startswith("tuning") and settings[path].span),
            None,
        )
        message = "this version runs no studies: `tuning` is read and not acted upon"
        yield Diagnostic("R206", message, span, severity=Severity.WARNING)
