"""R204: an image pyramid needs a model that takes one, and its first scale is the image itself."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check that `data.scales` and `model.multi_scale` agree."""
    multi, scales = settings["model.multi_scale"], settings["data.scales"]
    given = scales.value or []
    if multi.value and len(given) < 2:
        message = "`multi_scale` needs at least two `scales`"
        yield Diagnostic("R204", message, scales.span or multi.span, helps=("add `data.scales: [1.0, 0.5]`",))
    if not multi.value and len(given) > 1:
        message = f"{len(given)} scales are given, but `model.multi_scale` is off"
        yield Diagnostic("R204", message, scales.span, helps=("set `model.multi_scale: true`, or remove `scales`",))
    if given and (given[0] != 1.0 or sorted(set(given), reverse=True) != given):
        message = "`scales` must start at 1.0 and get smaller"
        better = sorted({1.0, *given}, reverse=True)
        yield Diagnostic("R204", message, scales.span, helps=(f"write `scales: {better}`",))
