"""Settings and facts -> plan, by an ordered tuple of derivations.

A derivation is ``derive(context) -> Iterator[Diagnostic]``: it reads settings, facts and the values derived before it,
and puts values with their reasons into the context. It touches nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan, Values
from ratc.program import has_step, is_program
from ratc.resolve import (
    allocation,
    allocator,
    batch,
    checkpoints,
    compression,
    data,
    engine,
    experiment,
    health,
    launch,
    loader,
    memory,
    model,
    parallelism,
    precision,
    program,
    rate,
    request,
    several,
    sharding,
    task,
    training,
    workers,
)
from ratc.resolve.context import Context

if TYPE_CHECKING:
    from ratc.memory.decision import Decision

#: In the order in which they run: each may read the values of those before it.
DERIVATIONS = (
    experiment,
    task,
    parallelism,
    request,
    precision,
    allocator,
    batch,
    engine,
    sharding,
    model,
    rate,
    training,
    compression,
    data,
    workers,
    loader,
    several,
    checkpoints,
    memory,
    launch,
    health,
)
#: If a program of the spec's own trains (`entrypoint`).
PROGRAM = (experiment, parallelism, request, precision, batch, rate, workers, program, launch, health)
#: The same if the spec describes the program's step.
WITH_STEP = (
    experiment,
    parallelism,
    request,
    precision,
    allocator,
    batch,
    rate,
    workers,
    program,
    memory,
    launch,
    health,
)
#: For the request of a job in which Ray runs a study: each trial's training is resolved by itself.
ALLOCATION = (experiment, task, parallelism, request, allocation, launch, health)


def resolve(
    settings: Values,
    facts: Values,
    decision: Decision | None = None,
    derivations: Sequence[ModuleType] | None = None,
) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    """Derive every value of the run; a decision settles the values that memory decides. Codes: R3xx."""
    context = Context(settings, facts, decision)
    found: list[Diagnostic] = []
    usual = WITH_STEP if has_step(settings) else PROGRAM if is_program(settings) else DERIVATIONS
    for derivation in usual if derivations is None else derivations:
        found += derivation.derive(context)
        if has_errors(found):
            return None, tuple(found)
    return Plan(Values(context.values), settings, facts), tuple(found)
