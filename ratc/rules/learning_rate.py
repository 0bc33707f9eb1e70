"""R241: a learning rate that no training with its optimizer survives, such as `10` for `1e-3`."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values

#: By optimizer, the largest rate without a warning, and the usual ones.
_ADAM = (0.1, "{} moves each weight by about the learning rate in each step; 1e-5 to 1e-2 is usual")
_LARGEST = {"sgd": (10.0, "{} moves weights by the learning rate times the gradient; 1e-3 to 1 is usual")}
_NAMES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check the peak rate, and the final rate of the schedule."""
    optimizer = _NAMES[settings.get_as(str, "training.optimizer")]
    largest, usual = _LARGEST.get(settings.get_as(str, "training.optimizer"), _ADAM)
    for name in ("learning_rate", "min_learning_rate"):
        rate = settings[f"training.{name}"]
        if isinstance(rate.value, (int, float)) and rate.value > largest:
            message = f"`{name}` {rate.value:g} is far above the usual rates of {optimizer}"
            notes = (usual.format(optimizer),)
            helps = ("lower it; `ratc tune lr SPEC` measures one for a spec",)
            yield Diagnostic("R241", message, rate.span, notes, helps, Severity.WARNING)
