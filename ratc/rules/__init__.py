"""Checks that a schema cannot make: one file a rule, each with one pure ``check(settings)``, registered here."""

from __future__ import annotations

from ratc.diagnostics import Diagnostic
from ratc.parts import parts
from ratc.plan import Values
from ratc.program import has_step, is_program, step
from ratc.rules import (
    allocator,
    augmentations,
    callables,
    classes,
    custom,
    dimensions,
    elastic,
    entrypoint,
    exclusive,
    folds,
    grid,
    heads,
    ineffective,
    launch_variables,
    learning_rate,
    metric,
    model_arguments,
    readonly,
    scales,
    secrets,
    several,
    task,
    unexpanded,
)

#: Of a task: if a spec has several, they look at each of them.
OF_TASK = (task, model_arguments, dimensions, classes)
RULES = (
    several,
    callables,
    custom,
    entrypoint,
    exclusive,
    elastic,
    heads,
    scales,
    secrets,
    readonly,
    ineffective,
    allocator,
    launch_variables,
    learning_rate,
    grid,
    metric,
    augmentations,
    folds,
    unexpanded,
)
#: For a program of the user's instead of the built-in loop: the other rules are about the loop.
OF_PROGRAM = (entrypoint, exclusive, elastic, secrets, readonly, launch_variables, unexpanded)
#: If the spec describes the program's step: as of the loop's, with `OF_TASK`.
OF_STEP = (callables, custom, heads, scales, allocator, grid, *OF_TASK)


def check(settings: Values) -> tuple[Diagnostic, ...]:
    """Return the findings of every rule, in the order of the file."""
    if is_program(settings):
        found = [one for rule in OF_PROGRAM for one in rule.check(settings)]
        # R245 says of several tasks that only the loop has them.
        if has_step(settings) and settings["task_type"].value != "multi":
            found += [one for rule in OF_STEP for one in rule.check(step(settings))]
        return tuple(sorted(found, key=_line))
    found = [diagnostic for rule in RULES for diagnostic in rule.check(settings)]
    tasks = parts(settings).values() if settings["task_type"].value == "multi" else (settings,)
    # A finding on the model, which the tasks share, is reported once.
    found += dict.fromkeys(diagnostic for task in tasks for rule in OF_TASK for diagnostic in rule.check(task))
    return tuple(sorted(found, key=_line))


def _line(diagnostic: Diagnostic) -> tuple[str, int]:
    return (diagnostic.span.source.name, diagnostic.span.line) if diagnostic.span else ("", 0)
