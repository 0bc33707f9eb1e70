"""The predicted or measured memory of a step, against which the runtime compares its own measurement."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.memory.margin import text
from ratc.resolve.context import Context


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the peaks and their margin; null without a prediction or a measurement."""
    found = context.decision.choice.estimate if context.decision else None
    reason = "predicted from a trace" if found else "not predicted"
    if context.decision and context.decision.measured:
        reason = context.decision.measured
    # Predicted since the spec left the micro-batch to ratc, or which blocks are recomputed for the one that it gives.
    asked = ["training.batch_size"] if context.choice is not None else []
    if not asked:
        open_ = ("training.activation_checkpointing", "parallel.strategy")
        asked = [path for path in open_ if context.settings[path].value == "auto"]
    left = tuple(f"spec:{path}" for path in asked) if found else ()
    inputs = ("training.micro_batch_size", "hardware.card", *left)
    context.derive("memory.peak_allocated_bytes", found.peak_allocated_bytes if found else None, reason, *inputs)
    context.derive("memory.peak_reserved_bytes", found.peak_reserved_bytes if found else None, reason, *inputs)
    parts = f"{reason}: {text(found.margin_parts)}" if found else reason
    context.derive("memory.margin", found.margin if found else None, parts, *inputs)
    yield from ()
