"""Two recordings, at two batch sizes, become one trace: every size as fixed + per_sample x micro-batch."""

from __future__ import annotations

from typing import Any

from ratc_runtime.trace.failure import NOT_TRACEABLE, Failure, TraceError
from ratc_runtime.trace.ledger import KINDS, PHASES
from ratc_runtime.trace.record import Recording

VERSION = 1


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _differs(small: Recording, large: Recording) -> Failure | None:
    """Say where two recordings part, or return None: the same events in the same order, of the same nature."""
    for position, (one, other) in enumerate(zip(small.events, large.events, strict=False)):
        if one != other or (one[1] and small.blocks[one[0]][1:] != large.blocks[one[0]][1:]):
            _, phase, module, _ = small.blocks[one[0]]
            place = f"module {module} " if module else ""
            return _apart(small, large, f"{place}in {phase}, event {position}")
    if len(small.events) != len(large.events) or small.steps != large.steps:
        return _apart(small, large, f"{len(small.events)} and {len(large.events)} events")
    return None


def _apart(small: Recording, large: Recording, place: str) -> Failure:
    return Failure(
        NOT_TRACEABLE,
        f"the step does not do the same at micro-batches {small.batch} and {large.batch}: they part at {place}",
        place,
    )


def match(small: Recording, large: Recording, request: dict[str, Any], torch_version: str) -> dict[str, Any]:
    """Return the trace of docs/trace.md; raise TraceError (R315) where the recordings are not of one program."""
    failure = _differs(small, large)
    if failure is not None:
        raise TraceError(failure)
    modules: dict[str, int] = {"": 0}
    events: list[list[int | float]] = []
    for number, allocates in small.events:
        if not allocates:
            events.append([number])
            continue
        size, phase, module, kind = small.blocks[number]
        per_sample = (large.blocks[number][0] - size) / (large.batch - small.batch)
        index = modules.setdefault(module, len(modules))
        events.append(
            [
                number,
                _number(size - per_sample * small.batch),
                _number(per_sample),
                PHASES.index(phase),
                index,
                KINDS.index(kind),
            ]
        )
    return {
        "trace_version": VERSION,
        "torch": torch_version,
        "request": request,
        "batch_sizes": [small.batch, large.batch],
        "parameters": small.parameters,
        "modules": list(modules),
        "phases": list(PHASES),
        "kinds": list(KINDS),
        "steps": small.steps,
        "events": events,
    }
