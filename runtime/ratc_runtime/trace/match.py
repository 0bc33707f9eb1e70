"""Two recordings, at two batch sizes, become one trace: every size as fixed + per_sample x micro-batch, or as a product
of such sides (the distances of all samples of a batch). The same recording given twice becomes a trace that holds for
its batch size only.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ratc_runtime.trace.failure import NOT_TRACEABLE, Failure, TraceError
from ratc_runtime.trace.ledger import KINDS, PHASES
from ratc_runtime.trace.record import Recording

VERSION = 4


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _differs(small: Recording, large: Recording) -> Failure | None:
    """Return the failure at the first difference of two recordings, in the order or the nature of events, or None."""
    for position, (one, other) in enumerate(zip(small.events, large.events, strict=False)):
        if one != other or (one[1] and small.blocks[one[0]][1:] != large.blocks[one[0]][1:]):
            _, phase, module, _ = small.blocks[one[0]]
            place = f"module {module} in {phase}" if module else phase
            return _diverged(small, large, f"{place}, event {position}")
    if {n: one.rule for n, one in small.scratch.items()} != {n: one.rule for n, one in large.scratch.items()}:
        return _diverged(small, large, "what kernels take for themselves")
    if len(small.events) != len(large.events) or small.steps != large.steps:
        return _diverged(small, large, f"their ends, {len(small.events)} and {len(large.events)} events")
    return None


def _diverged(small: Recording, large: Recording, place: str) -> Failure:
    return Failure(
        NOT_TRACEABLE,
        f"the step does not do the same at micro-batches {small.batch} and {large.batch}: they part at {place}",
        place,
    )


def _line(one: float, other: float, small: Recording, large: Recording) -> tuple[int | float, int | float]:
    """Return fixed and per sample of a number at two batch sizes."""
    if small.batch == large.batch:
        return _number(one), 0
    per_sample = (other - one) / (large.batch - small.batch)
    return _number(one - per_sample * small.batch), _number(per_sample)


def _described(number: int, small: Recording, large: Recording) -> list[Any]:
    one, other = small.scratch[number], large.scratch[number]
    pairs = zip(one.numbers, other.numbers, strict=True)
    return [number, one.rule, *(list(_line(a, b, small, large)) for a, b in pairs)]


def _product(number: int, small: Recording, large: Recording) -> list[Any] | None:
    """Return the description of a tensor of which several sides follow the batch; None for any other block."""
    one, other = small.shapes[number], large.shapes[number]
    if len(one) != len(other) or sum(a != b for a, b in zip(one, other, strict=True)) < 2:
        return None
    return [number, "product", *(list(_line(a, b, small, large)) for a, b in zip(one, other, strict=True))]


def is_uneven(small: Recording, large: Recording) -> bool:
    """Return whether two batch sizes may be too few to derive the step's memory, so that a third must confirm it.

    That is the case if several sides of a tensor depend on the batch, or if one grows by fractions of an element a
    sample (pairs of samples).
    """
    if small.batch == large.batch or len(small.shapes) != len(large.shapes):
        return False
    for one, other in zip(small.shapes, large.shapes, strict=True):
        grown = [b - a for a, b in zip(one, other, strict=False) if a != b]
        if len(one) != len(other) or len(grown) > 1 or any(size % (large.batch - small.batch) for size in grown):
            return True
    return False


def _size_mismatch(
    small: Recording, large: Recording, third: Recording, products: dict[int, list[Any]]
) -> Failure | None:
    """Return the failure at the first block whose size at a third micro-batch differs from the size predicted from the
    two others; None if there is none.
    """
    failure = _differs(*_alike(small, third))
    if failure is not None:
        return failure
    for number, (size, phase, module, _) in enumerate(third.blocks):
        if number in small.scratch:
            if not _follows(number, small, large, third):
                return _no_line(number, phase, module, small, large, third)
            continue
        lines = products[number][2:] if number in products else [_line_of(number, small, large)]
        if math.prod(fixed + per_sample * third.batch for fixed, per_sample in lines) != size:
            return _no_line(number, phase, module, small, large, third)
    return None


def _follows(number: int, small: Recording, large: Recording, third: Recording) -> bool:
    """Return whether a kernel's numbers at a third micro-batch are those predicted from the two others. Partial sums of
    a reduction always count as such, because they are small.
    """
    rule, *lines = _described(number, small, large)[1:]
    told = [fixed + per_sample * third.batch for fixed, per_sample in lines]
    return rule == "reduction" or told == list(third.scratch[number].numbers)


def _line_of(number: int, small: Recording, large: Recording) -> tuple[int | float, int | float]:
    return _line(small.blocks[number][0], large.blocks[number][0], small, large)


def _no_line(number: int, phase: str, module: str, *recordings: Recording) -> Failure:
    place = f"module {module} in {phase}" if module else phase
    if number in recordings[0].scratch:
        message = f"what a kernel takes for itself does not follow the micro-batch by a rule that ratc knows ({place})"
        return Failure(NOT_TRACEABLE, message, place)
    sizes = ", ".join(f"{one.blocks[number][0]:,} at {one.batch}" for one in recordings)
    message = f"the bytes of a tensor do not follow the micro-batch by a rule that ratc knows: {sizes} ({place})"
    return Failure(NOT_TRACEABLE, message, place)


def in_order(events: list[tuple[int, bool]], bounds: list[int]) -> list[tuple[int, bool]]:
    """Return events with the blocks that are freed at one moment in order of their allocation.

    A hash table of addresses (a set of tensors, a collected cycle) frees in an order that differs between processes.
    The free memory afterwards is the same, and an allocator's use of it nearly always, too. No event crosses a bound.
    """
    ordered: list[tuple[int, bool]] = []
    freed: list[tuple[int, bool]] = []
    starts = set(bounds)
    for position, event in enumerate(events):
        if event[1] or position in starts:
            ordered += sorted(freed)
            freed = []
        (ordered if event[1] else freed).append(event)
    return ordered + sorted(freed)


def _alike(small: Recording, large: Recording) -> tuple[Recording, Recording]:
    """Return both recordings in one order of events. Equal ones keep their own, because the allocator's peak depends on
    it.
    """
    if small.events == large.events:
        return small, large

    def ordered(one: Recording) -> Recording:
        bounds = (bound for span in one.spans for bound in (*span.forward, *span.backward))
        return replace(one, events=in_order(one.events, [*one.steps, *bounds]))

    return ordered(small), ordered(large)


def work(small: Recording, large: Recording) -> tuple[list[list[Any]], list[int]]:
    """Return the kernels of a step, and the row of each recorded kernel. A row is operator, type, regular (0 or 1),
    phase, launches, then operations and bytes of a launch, each as fixed and per sample. Kernels that agree in all of
    it are one. Empty if the recordings differ in their kernels.
    """
    pairs = list(zip(small.kernels, large.kernels, strict=False))
    if len(small.kernels) != len(large.kernels) or any(one[:5] != other[:5] for one, other in pairs):
        return [], []
    found: dict[tuple[Any, ...], int] = {}
    rows: dict[tuple[Any, ...], int] = {}
    numbers: list[int] = []
    for one, other in pairs:
        name, kind, regular, phase, launches, *sizes = one
        lines = [_line(a / launches, b / launches, small, large) for a, b in zip(sizes, other[5:], strict=True)]
        key = name, kind, int(regular), PHASES.index(phase), *lines[0], *lines[1]
        numbers.append(rows.setdefault(key, len(rows)))
        found[key] = found.get(key, 0) + launches
    return [[*key[:4], launches, *key[4:]] for key, launches in found.items()], numbers


def blocks(small: Recording, large: Recording, rows: list[int]) -> list[list[Any]]:
    """Return the calls of the model's blocks: name, the bounds of the events of forward and backward, inputs, outputs,
    and the launches of each row of kernels. Empty if the recordings differ in them.
    """
    if [replace(span, kernels=(0, 0)) for span in small.spans] != [
        replace(span, kernels=(0, 0)) for span in large.spans
    ]:
        return []
    found = []
    for span in small.spans:
        launches: dict[int, int] = {}
        for number in range(*span.kernels) if rows else ():
            launches[rows[number]] = launches.get(rows[number], 0) + small.kernels[number].launches
        bounds = [*span.forward, *span.backward]
        found.append([span.name, bounds, span.inputs, span.outputs, [list(pair) for pair in launches.items()]])
    return found


def match(
    small: Recording, large: Recording, request: dict[str, Any], torch_version: str, third: Recording | None = None
) -> dict[str, Any]:
    """Return the trace of docs/reference/trace.md.

    Raises TraceError (R315) if the recordings differ, or if the sizes of ``third`` differ from those predicted.
    """
    small, large = _alike(small, large)
    failure = _differs(small, large)
    if failure is not None:
        raise TraceError(failure)
    found = ((number, _product(number, small, large)) for number in range(len(small.blocks)))
    products = {number: one for number, one in found if one is not None}
    if third is not None:
        failure = _size_mismatch(small, large, third, products)
        if failure is not None:
            raise TraceError(failure)
    modules: dict[str, int] = {"": 0}
    events: list[list[int | float]] = []
    for number, allocates in small.events:
        if not allocates:
            events.append([number])
            continue
        _, phase, module, kind = small.blocks[number]
        fixed, per_sample = (0, 0) if number in products else _line_of(number, small, large)
        lines = [(fixed, per_sample)]
        if number in products or number in small.scratch:
            lines = (products[number] if number in products else _described(number, small, large))[2:]
        if any(growth < 0 or constant + growth < 0 for constant, growth in lines):
            raise TraceError(_no_line(number, phase, module, small, large))
        index = modules.setdefault(module, len(modules))
        events.append([number, fixed, per_sample, PHASES.index(phase), index, KINDS.index(kind)])
    described = [_described(number, small, large) for number in sorted(small.scratch)]
    # With products the kernels' work is not linear either.
    kernels, rows = ([], []) if products else work(small, large)
    return {
        "trace_version": VERSION,
        "torch": torch_version,
        "request": request,
        "batch_sizes": sorted({small.batch, large.batch}),
        "parameters": small.parameters,
        "classes": small.classes,
        "wrap": small.wrap,
        "modules": list(modules),
        "phases": list(PHASES),
        "kinds": list(KINDS),
        "steps": small.steps,
        "events": events,
        "optional": small.optional,
        "estimates": sorted({*small.estimates, *large.estimates}),
        "scratch": [*described, *products.values()],
        "work": kernels,
        "blocks": blocks(small, large, rows),
    }
