"""R241: a learning rate that no training with its optimizer survives, such as `10` for `1e-3`."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog import optimizers
from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check the peak rate, and the final rate of the schedule."""
    optimizer = optimizers.of(settings.get_as(str, "training.optimizer"))
    for name in ("learning_rate", "min_learning_rate"):
        rate = settings[f"training.{name}"]
        if isinstance(rate.value, (int, float)) and rate.value > optimizer.largest_rate:
            message = f"`{name}` {rate.value:g} is far above the usual rates of {optimizer.title}"
            notes = (optimizer.rates.format(optimizer.title),)
            helps = ("use a lower one; `ratc tune lr SPEC` measures a learning rate for a spec",)
            yield Diagnostic("R241", message, rate.span, notes, helps, Severity.WARNING)
