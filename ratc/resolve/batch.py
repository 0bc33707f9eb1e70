"""Global batch = micro-batch x accumulation x world size, exactly. Codes: R304, R305, R310.

The global batch determines the loss; it is never changed silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import TYPE_CHECKING

from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.plan import Value
from ratc.resolve.context import Context
from ratc.units import counted, size_text

if TYPE_CHECKING:
    from ratc.memory.decision import Decision

#: The largest micro-batch, in samples, if the spec names none and memory is not predicted. Chosen, not measured.
DEFAULT_MICRO_BATCH = 8
#: The global batch, in samples, if the spec gives no batch size at all. Chosen, not measured.
DEFAULT_GLOBAL_BATCH = 32
#: The largest batch size that the schema accepts.
LARGEST = 1_000_000_000

_GLOBAL, _MICRO, _ACCUMULATION = (
    "training.global_batch_size",
    "training.micro_batch_size",
    "training.gradient_accumulation_steps",
)
_TARGET, _BATCH = "training.target_batch_size", "training.batch_size"


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the missing ones of global batch, micro-batch and accumulation from the given ones."""
    settings, world = context.settings, int(context.value("parallel.world_size"))
    target, micro = settings.maybe(int, _TARGET), settings.maybe(int, _BATCH)
    accumulation = settings.maybe(int, _ACCUMULATION)
    if micro is None and not settings["training.auto_batch_size"].value:
        helps = ("give `batch_size`, or set `auto_batch_size: true`",)
        message = "`auto_batch_size` is false and there is no `batch_size`"
        yield Diagnostic("R310", message, settings["training.auto_batch_size"].span, helps=helps)
        return
    if target is None:
        target = _global_from_parts(context, world, micro, accumulation)
    else:
        context.keep(_TARGET, under=_GLOBAL)
    if target > LARGEST:
        message = f"global batch {target} is larger than ratc allows, {LARGEST}"
        span = settings[_BATCH].span or settings[_ACCUMULATION].span
        yield Diagnostic("R304", message, span, (context.values[_GLOBAL].reason,))
        return
    unit = world * (micro or 1) * (accumulation or 1)
    exact = micro is not None and accumulation is not None
    if (target != unit) if exact else target % unit:
        yield _cannot_split(context, target, world, micro, accumulation)
        return
    share = target // world
    if micro is not None:
        context.keep(_BATCH, under=_MICRO)
    elif accumulation is not None:
        micro = context.derive(
            _MICRO,
            share // accumulation,
            f"{target} / ({world} x {accumulation})",
            _GLOBAL,
            "parallel.world_size",
            f"spec:{_ACCUMULATION}",
        )
    elif context.decision is not None:
        micro = context.derive(_MICRO, *_predicted(context, context.decision, target, world))
    else:
        micro = max(n for n in range(1, DEFAULT_MICRO_BATCH + 1) if share % n == 0)
        why = f"largest divisor of {target} / {world} = {share} up to {DEFAULT_MICRO_BATCH}"
        context.derive(_MICRO, micro, why, _GLOBAL, "parallel.world_size")
        message = f"micro-batch size {micro} is a default; memory is not predicted"
        span = settings["training.auto_batch_size"].span or settings[_TARGET].span
        yield Diagnostic("R305", message, span, (why,), ("give `batch_size` to choose it yourself",), Severity.WARNING)
    if accumulation is not None:
        context.keep(_ACCUMULATION)
    else:
        context.derive(
            _ACCUMULATION,
            share // micro,
            f"{target} / ({micro} x {world})",
            _GLOBAL,
            _MICRO,
            "parallel.world_size",
        )


def _predicted(context: Context, decision: Decision, target: int, world: int) -> tuple[int, str, str, str, str]:
    found, above = decision.choice.estimate, decision.choice.next_larger
    card = context.value("hardware.card")
    why = f"largest divisor of {target} / {world} = {target // world} that fits {card}: "
    used, has = size_text(found.predicted_bytes), size_text(found.device.memory_bytes)
    why += f"{used} of {has} {decision.measured or 'predicted'}"
    if above:
        why += f", {above.micro_batch} would take {size_text(above.predicted_bytes)}"
    return found.micro_batch, why, _GLOBAL, "parallel.world_size", "hardware.memory_bytes"


def _global_from_parts(context: Context, world: int, micro: int | None, accumulation: int | None) -> int:
    if micro is None:
        # A multiple of the world, so that the default never fails.
        least = world * (accumulation or 1)
        total = -(-DEFAULT_GLOBAL_BATCH // least) * least
        why = f"default {DEFAULT_GLOBAL_BATCH}" + (
            f", raised to a multiple of {least}" if total != DEFAULT_GLOBAL_BATCH else ""
        )
        return int(context.derive(_GLOBAL, total, why, "parallel.world_size"))
    total = micro * (accumulation or 1) * world
    why = f"{micro} x {accumulation or 1} x {world}: no `target_batch_size` is given"
    return int(context.derive(_GLOBAL, total, why, f"spec:{_BATCH}", "parallel.world_size"))


def _cannot_split(context: Context, target: int, world: int, micro: int | None, accumulation: int | None) -> Diagnostic:
    settings, values = context.settings, context.values
    unit = world * (micro or 1) * (accumulation or 1)
    given, notes = settings[_TARGET], []
    nodes, per_node = values["parallel.nodes"].value, values["parallel.processes_per_node"].value
    unit_of_work = "GPU" if context.value("hardware.device") == "cuda" else "process"
    several = counted(world, unit_of_work)
    if world > 1:
        notes.append(f"{several} = {counted(nodes, 'node')} x {per_node}{_gpus_place(context)}")
    parts = [several] if world > 1 else []
    if micro:
        parts.append(f"micro-batches of {micro}")
        notes.append(f"micro-batch size {micro}{_at(settings[_BATCH])}")
    if accumulation:
        parts.append(f"{accumulation} accumulation steps")
        notes.append(f"{accumulation} accumulation steps{_at(settings[_ACCUMULATION])}")
    near = {unit} if micro and accumulation else {target // unit * unit, -(-target // unit) * unit}
    ways = [" or ".join(str(n) for n in sorted(near) if 0 < n <= LARGEST)]
    per_world, rest = divmod(target, (micro or 1) * (accumulation or 1))
    if world > 1 and not rest:
        # With both sizes given only one number of GPUs is right, and there may be fewer of them than it.
        fewer = per_world if micro and accumulation else _largest_divisor(per_world, world)
        if fewer < world:
            ways.append(counted(fewer, unit_of_work))
    if micro and target % world == 0 and not accumulation:
        ways.append(f"`batch_size: {_largest_divisor(target // world, micro)}`")
    message = f"global batch {target} cannot be split over {' and '.join(parts)}"
    ways = [way for way in ways if way]
    return Diagnostic("R304", message, given.span, tuple(notes), (f"use {', or '.join(ways)}",) if ways else ())


def _largest_divisor(number: int, most: int) -> int:
    pairs = ((n, number // n) for n in range(1, isqrt(number) + 1) if number % n == 0)
    return max(n for pair in pairs for n in pair if n <= most)


def _gpus_place(context: Context) -> str:
    for path in ("resources.num_gpus", "resources.gpus_per_node"):
        if context.settings[path].span:
            return _at(context.settings[path])
    return _at(context.facts["gpus_per_node"])


def _at(value: Value) -> str:
    span: Span | None = value.span
    return f" ({span.place})" if span else ""
