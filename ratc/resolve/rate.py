"""The learning rate: given or measured, and scaled with the global batch if the spec requests it.

Linear: Goyal et al., "Accurate, Large Minibatch SGD" (2017), for SGD. Square root: Krizhevsky, "One weird trick for
parallelizing convolutional neural networks" (2014); for Adam, Malladi et al., "On the SDEs and Scaling Rules for
Adaptive Gradient Algorithms" (2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.rates import conditions
from ratc.resolve.context import Context
from ratc.units import counted

_PATH = "training.learning_rate"


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the rate. Codes: R344, R345, R346."""
    settings = context.settings
    asked, rule, base = (
        settings[f"training.{key}"] for key in ("learning_rate", "learning_rate_scaling", "base_batch_size")
    )
    if asked.value == "auto":
        yield from _measured(context)
        if _PATH not in context.values:
            return
        if base.value is None:
            base = context.facts["rate.global_batch_size"]
    else:
        context.keep(_PATH)
    size = context.value("training.global_batch_size")
    if rule.value == "none":
        if asked.value == "auto" and base.value != size:
            message = (
                f"the learning rate was measured with a global batch of {base.value}, but the global batch is {size}"
            )
            helps = ("measure it again, or choose how it scales: `learning_rate_scaling: sqrt` or `linear`",)
            yield Diagnostic("R345", message, asked.span, helps=helps, severity=Severity.WARNING)
        return
    if base.value is None:
        helps = ("give the global batch size that it is for: `base_batch_size`",)
        yield Diagnostic(
            "R346",
            "`learning_rate_scaling` needs `base_batch_size`, the batch size that the learning rate is for",
            rule.span,
            helps=helps,
        )
        return
    if base.value != size:
        _scale(context, str(rule.value), int(base.value), size)


def _measured(context: Context) -> Iterator[Diagnostic]:
    """Take the rate that was measured under the spec's conditions. Code: R344."""
    asked, facts = context.settings[_PATH], context.facts
    helps = ("run `ratc tune lr SPEC`, which measures it and writes it beside the spec",)
    if "rate.learning_rate" not in facts:
        yield Diagnostic("R344", "no learning rate was measured for this spec", asked.span, helps=helps)
        return
    if facts["rate.of"].value != conditions(context.settings):
        note = "it is for another model, data set, loss or optimizer"
        place = facts["rate.of"].span
        notes = (f"{note} ({place.place})" if place else note,)
        message = "the learning rate beside the spec was measured for another training"
        yield Diagnostic("R344", message, asked.span, notes, helps)
        return
    day, steps, size = (facts[f"rate.{key}"].value for key in ("date", "steps", "global_batch_size"))
    why = f"measured on {day} over {counted(steps, 'step')} of {counted(size, 'sample')}"
    context.derive(_PATH, facts["rate.learning_rate"].value, why, "facts:rate.learning_rate", f"spec:{_PATH}")


def _scale(context: Context, rule: str, base: int, size: int) -> None:
    rate, given = float(context.value(_PATH)), context.values[_PATH]
    factor = size / base if rule == "linear" else math.sqrt(size / base)
    quotient = f"{size} / {base}" if rule == "linear" else f"sqrt({size} / {base})"
    why = f"{rate:g} x {quotient}: scaled from a global batch of {base}"
    why += f"; {given.reason}" if given.origin == "derived" else ""
    inputs = ("spec:training.learning_rate_scaling", "spec:training.base_batch_size", "training.global_batch_size")
    context.derive(_PATH, float(f"{rate * factor:.6g}"), why, *inputs, *given.inputs)
