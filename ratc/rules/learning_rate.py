"""R241: a learning rate that no training with AdamW survives, such as `10` for `1e-3`."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values

_LARGEST = 0.1


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check the peak rate, and the final rate of the schedule."""
    for name in ("learning_rate", "min_learning_rate"):
        rate = settings[f"training.{name}"]
        if isinstance(rate.value, (int, float)) and rate.value > _LARGEST:
            message = f"`{name}` {rate.value:g} is far above the usual rates of AdamW"
            notes = ("AdamW moves each weight by about the learning rate in each step; 1e-5 to 1e-2 is usual",)
            helps = ("lower it; `ratc tune lr SPEC` measures one for a spec",)
            yield Diagnostic("R241", message, rate.span, notes, helps, Severity.WARNING)
