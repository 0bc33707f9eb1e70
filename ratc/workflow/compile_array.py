"""Makes the files of a spec that stands for many runs: the points of a sweep, or the trials of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.fitting.check_batch import Checks
from ratc.plan import Plan
from ratc.sweep import Point
from ratc.targets import TARGETS, study
from ratc.targets.array import Array
from ratc.targets.artifact import Artifact, Place
from ratc.tuning.points import Study
from ratc.workflow.inputs import Gathered, Loaded
from ratc.workflow.points import resolve
from ratc.workflow.request import CompileRequest

#: Points left out of a study that are named one by one.
_NAMED = 5


def of_sweep(
    request: CompileRequest,
    loaded: Loaded,
    gathered: Gathered,
    target: str,
    place: Place,
    points: tuple[Point, ...],
    checks: Checks | None = None,
) -> tuple[tuple[Artifact, ...] | None, Plan | None, tuple[Diagnostic, ...]]:
    """Return the files of an array with a sweep's points, and the first point's plan.

    Codes: those of a spec, R334, R335.
    """
    assert loaded.document is not None
    assert loaded.settings is not None
    section = loaded.document.root.find(("sweep",))
    array = Array(place, loaded.settings.maybe(int, "sweep.max_parallel"), section.key_span if section else None)
    return _files(request, loaded, gathered, target, points, array, checks)


def of_study(
    request: CompileRequest,
    loaded: Loaded,
    gathered: Gathered,
    target: str,
    place: Place,
    found: Study,
    checks: Checks | None = None,
) -> tuple[tuple[Artifact, ...] | None, Plan | None, tuple[Diagnostic, ...]]:
    """Return the files of an array with a study's trials, `study.yaml` among them, and the first trial's plan.

    Codes: those of `of_sweep`, R338, R339.
    """
    array, left = Array(place, found.max_parallel, found.span), list[tuple[Point, Diagnostic]]()

    def record() -> Artifact:
        return study.artifact(place, found, len(array.entries), left)

    made, plan, said = _files(request, loaded, gathered, target, found.points, array, checks, left, record)
    return made, plan, (*said, *left_out(found, left))


def _files(
    request: CompileRequest,
    loaded: Loaded,
    gathered: Gathered,
    target: str,
    points: tuple[Point, ...],
    array: Array,
    checks: Checks | None,
    left: list[tuple[Point, Diagnostic]] | None = None,
    record: Callable[[], Artifact] | None = None,
) -> tuple[tuple[Artifact, ...] | None, Plan | None, tuple[Diagnostic, ...]]:
    assert loaded.document is not None
    assert loaded.settings is not None
    hardware, found = gathered.settled(loaded.settings)
    if hardware is None:
        return None, None, found
    found += resolve(request, loaded.document, points, hardware, array, left, checks)
    if has_errors(found) or array.first is None:
        return None, None, found
    shared, said = TARGETS[target](array.first, array.place, array.shape)
    found += said
    if shared is None:
        return None, None, found
    return array.artifacts(target, (*shared, record()) if record else shared), array.first, found


def left_out(found: Study, left: Sequence[tuple[Point, Diagnostic]]) -> tuple[Diagnostic, ...]:
    """Return a warning that counts and names the infeasible points; an error if all are. Codes: R338, R339."""
    if not left:
        return ()
    notes = tuple(f"{point.name}: {point.text}: {why.message} ({why.code})" for point, why in left[:_NAMED])
    if len(left) > _NAMED:
        notes += (f"and {len(left) - _NAMED} more, in `study.yaml`",)
    if len(left) == len(found.points):
        return (Diagnostic("R339", "no trial of the study can run", found.span, notes),)
    message = f"{len(left)} of {len(found.points)} trials cannot run and are left out"
    return (Diagnostic("R338", message, found.span, notes, severity=Severity.WARNING),)
