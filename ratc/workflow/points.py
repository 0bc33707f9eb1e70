"""Resolves the points of a sweep one by one into an array: all are checked before a file is written."""

from __future__ import annotations

from functools import partial

from ratc import compiler
from ratc.diagnostics import Diagnostic, Severity, Span, has_errors
from ratc.fitting.check_batch import Checks
from ratc.plan import Plan, Values
from ratc.resolve.infeasible import infeasible
from ratc.sweep import Point, met_at, without_repeats
from ratc.targets.array import Array
from ratc.workflow.inputs import Known, with_memory
from ratc.workflow.request import CompileRequest
from ratc.yaml.parse import Document

#: Points that may fail before the rest is skipped: most are the same mistake.
MOST_FAILURES = 20
#: Tasks of an array if a site sets nothing else: Slurm's MaxArraySize is 1001, LSF's MAX_JOB_ARRAY_SIZE 1000.
USUAL_ARRAY = 1000


def resolve(
    request: CompileRequest,
    document: Document,
    points: tuple[Point, ...],
    hardware: Values,
    array: Array,
    left: list[tuple[Point, Diagnostic]] | None = None,
    checks: Checks | None = None,
) -> tuple[Diagnostic, ...]:
    """Put every point of a sweep into the array. Codes: those of a spec, each said once, with its first point; R334.

    A point cannot request other resources than the spec, so the hardware is settled once for all. Infeasible points of
    a study go to ``left`` with the reason, and are not errors. With ``checks``, given micro-batches are checked.
    """
    found: list[Diagnostic] = list(_array_size(len(points), hardware, array.span))
    if has_errors(found):
        return tuple(found)
    known: Known = {}
    failures = 0
    for point in points:
        plan, said = _plan(request, document, point, hardware, known)
        if plan is not None and checks is not None:
            said += met_at(point, checks.check(plan.traced, request.folder, point is points[-1]))
            plan = None if has_errors(said) else plan
        why = infeasible(said) if left is not None else None
        if left is not None and why is not None:
            left.append((point, why))
            continue
        different = array.add(point.name, point.text, plan) if plan else []
        found += (*said, *_other_resources(point, different))
        failures += plan is None or bool(different)
        if failures >= MOST_FAILURES:
            break
    return tuple(without_repeats(found))


def _array_size(many: int, hardware: Values, span: Span | None) -> tuple[Diagnostic, ...]:
    """Return a finding if the cluster may not take an array of so many tasks. Code: R335."""
    most = hardware.get("cluster.max_array_size")
    if most is None:
        return ()
    if most.value is None:
        if many <= USUAL_ARRAY:
            return ()
        message = f"an array of {many:,} points: Slurm and LSF take {USUAL_ARRAY:,} unless the site allows more"
        helps = ("set `max_array_size` in the cluster's facts",)
        return (Diagnostic("R335", message, span, helps=helps, severity=Severity.WARNING),)
    if many <= most.value:
        return ()
    note = f"{most.reason} takes {most.value:,}" + (f" ({most.span.place})" if most.span else "")
    message = f"an array of {many:,} points is more than the cluster takes"
    return (Diagnostic("R335", message, span, (note,), ("split the sweep over several specs",)),)


def _plan(
    request: CompileRequest,
    document: Document,
    point: Point,
    hardware: Values,
    known: Known,
) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    settings, said = compiler.check_point(document, point)
    if settings is None:
        return None, said
    plan, more, _ = with_memory(request, partial(compiler.plan_on, settings, hardware), True, known)
    return plan, (*said, *met_at(point, more))


def _other_resources(point: Point, paths: list[str]) -> tuple[Diagnostic, ...]:
    if not paths:
        return ()
    span = point.nodes[0][1].span if point.nodes else None
    message = f"point {point.name} asks the scheduler for other values than the first point: {', '.join(sorted(paths))}"
    helps = ("all points of an array get the same resources",)
    return (Diagnostic("R334", message, span, (f"its values: {point.text}",), helps),)
