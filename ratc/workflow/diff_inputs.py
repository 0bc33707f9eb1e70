"""Loads one side of a comparison: a spec, a compiled folder, or either of a git revision."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from ratc import __version__, compiler
from ratc.comparison import effects
from ratc.comparison.model import Side
from ratc.compiled import drift, git_revisions, read_lock
from ratc.compiled.git_revisions import Revision
from ratc.compiled.read_lock import Compiled
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.fitting.check_batch import SKIP
from ratc.fitting.open_batch import is_given
from ratc.plan import Plan, Value, Values
from ratc.program import used
from ratc.targets import lock
from ratc.workflow import compile as compiling
from ratc.workflow import inputs, recorded
from ratc.workflow.inputs import Known
from ratc.workflow.read import read as read_file
from ratc.workflow.request import CompileRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """One side as the user names it; fields that are not given are None. ``data`` replaces the file's bytes."""

    text: str
    target: str | None = None
    facts: str | None = None
    data: bytes | None = None


#: How the time of a side's step is found, if its card is known: it may take a trace.
_Times: TypeAlias = list[Callable[[], str]]


def pair(old: Asked, new: Asked, stack: ExitStack) -> tuple[tuple[Side, Side] | None, tuple[Diagnostic, ...]]:
    """Load both sides in comparable form. A side without a target takes the target of the other, if that is a lock."""
    missing = [problem for asked in (old, new) if (problem := _missing(asked))]
    if missing:  # before git is asked for a version of it
        return None, tuple(missing)
    old, new = _completed(old, new), _completed(new, old)
    places: list[str | Revision] = []
    for asked, other in ((old, new), (new, old)):
        place, found = _place(asked, other, stack)
        if place is None:
            return None, found
        places.append(place)
    targets = [asked.target or _target(place) for asked, place in zip((old, new), places, strict=True)]
    given = next((target for target in targets if target), "local")
    known: Known = {}
    times: tuple[_Times, _Times] = ([], [])
    loaded = [
        _load(asked, place, target or given, known, of_side)
        for asked, place, target, of_side in zip((old, new), places, targets, times, strict=True)
    ]
    found = tuple(item for _, said in loaded for item in said)
    first, second = loaded[0][0], loaded[1][0]
    if first is None or second is None:
        return None, found
    if _bare(first) != _bare(second):  # for equal sides nothing is traced
        first, second = (
            replace(side, step=of_side[-1]()) if of_side else side
            for side, of_side in zip((first, second), times, strict=True)
        )
    return _aligned(first, second), found


def _bare(side: Side) -> dict[str, object]:
    return {path: value.value for path, value in _flat(side.values).items() if path.partition(".")[0] in lock.SECTIONS}


def _missing(asked: Asked) -> Diagnostic | None:
    if asked.data is not None or git_revisions.split(asked.text) or os.path.exists(asked.text):
        return None
    return read_file(asked.text)[1]


def _completed(asked: Asked, other: Asked) -> Asked:
    """Complete `REV:` with the other side's path."""
    parts = git_revisions.split(asked.text)
    if parts is None or parts[1]:
        return asked
    theirs = git_revisions.split(other.text)
    path = theirs[1] if theirs else git_revisions.inside(other.text) or other.text
    return replace(asked, text=f"{parts[0]}:{path}")


def _place(asked: Asked, other: Asked, stack: ExitStack) -> tuple[str | Revision | None, tuple[Diagnostic, ...]]:
    parts = git_revisions.split(asked.text)
    if parts is None:
        own = os.path.join(asked.text, asked.target or "")
        return (own if asked.target and os.path.isdir(own) else asked.text), ()
    inside = git_revisions.inside(".") is not None or git_revisions.split(other.text)
    near = "." if inside else os.path.dirname(other.text) or "."
    return git_revisions.take(*parts, near, stack)


def _target(place: str | Revision) -> str | None:
    """The target that a lock names; None for a spec."""
    path = place.path if isinstance(place, Revision) else place
    if not read_lock.is_compiled(path):
        return None
    read, _ = read_lock.read(path)
    return read.target if read else None


def _load(
    asked: Asked, place: str | Revision, target: str, known: Known, times: _Times
) -> tuple[Side | None, tuple[Diagnostic, ...]]:
    path = place.path if isinstance(place, Revision) else place
    if asked.data is None and (os.path.isdir(path) or read_lock.is_compiled(path)):
        side, found = _of_compiled(asked, path, known, times)
    elif asked.data is not None and (os.path.basename(path) == lock.NAME or read_lock.is_lock(asked.data)):
        read, found = read_lock.parsed(path, asked.data)
        side, found = _of_lock(asked, read) if read else (None, found)
    else:
        request = CompileRequest(path, target, asked.facts, text=asked.data)
        side, found = _of_spec(asked.text, request, known, times)
    if isinstance(place, Revision):
        return side and _of_revision(side, place), tuple(map(place.found, found))
    return side, found


def _of_spec(
    name: str, request: CompileRequest, known: Known, times: _Times
) -> tuple[Side | None, tuple[Diagnostic, ...]]:
    """Return a resolved spec; of a sweep the first point, with the names of all. ``RAT_*`` variables are ignored."""
    refused = inputs.known_target(request.target)
    if refused:
        return None, refused
    loaded = inputs.load(request)
    if loaded.settings is None or loaded.document is None:
        return None, loaded.diagnostics
    settings, found = loaded.settings, list(loaded.diagnostics)
    points, said = compiler.points(loaded.document)
    found += said
    if has_errors(found):
        return None, tuple(found)
    if points:
        first, said = compiler.check_point(loaded.document, points[0])
        found += said
        if first is None:
            return None, tuple(found)
        # The points hold the values of the sweep's own keys.
        settings = Values({**first, **{path: settings[path] for path in settings if path == "sweep.max_parallel"}})
    plan, said, _, decision = inputs.decided(request, settings, known=known)
    found += said
    if plan is None:
        return None, tuple(found)
    side = _of_plan(name, request.target, plan, tuple(found))
    if decision is not None or (is_given(plan.traced) and not os.environ.get(SKIP)):
        times.append(partial(_step, plan.traced, request.folder))
    side = replace(side, own_code=compiling.reached(loaded), unpredicted=compiling.is_untrusted(found))
    return replace(side, points={point.name: point.text for point in points}), ()


def _of_plan(name: str, target: str, plan: Plan, found: tuple[Diagnostic, ...]) -> Side:
    words = tuple(f"{item.code}: {item.message}" for item in found if item.severity is Severity.WARNING)
    return Side(name, target, plan.values, used(plan.settings), plan.facts, ratc_version=__version__, findings=words)


def _step(plan: Plan, folder: str) -> str:
    """Return the time of the plan's step, from its trace or from a measurement; empty if unknown."""
    # Imported here: only a plan on a known card has a trace.
    from ratc.fitting import step_time

    # A revision has no output folder, so the speed of a run would stand beside a prediction.
    step, _ = step_time.predict_step(plan, folder, earlier=False)
    return step.short() if step else ""


def _of_compiled(asked: Asked, path: str, known: Known, times: _Times) -> tuple[Side | None, tuple[Diagnostic, ...]]:
    read, found = read_lock.read(path)
    if read is None:
        return None, found
    side = _explained(asked, read, known, times)
    return (side, ()) if side else _of_lock(asked, read)


def _of_lock(asked: Asked, read: Compiled) -> tuple[Side | None, tuple[Diagnostic, ...]]:
    """Return a lock alone. Code: R450 for an edited lock."""
    odd = [path for path in read.values if not effects.is_known(path)]
    if odd:
        message = f"`{read.path}` holds a value that no lock of ratc holds: `{odd[0]}`"
        helps = ("compile the spec again, instead of editing the lock",)
        return None, (Diagnostic("R450", message, read.values[odd[0]].span, helps=helps),)
    points = {name: f"{text} ({read.point_locks[name][7:19]})" for name, text in read.points.items()}
    side = Side(asked.text, read.target, read.values, {}, {}, read.inputs, read.ratc_version, points)
    return replace(side, own_code=drift.records(read.document)), ()


def _explained(asked: Asked, read: Compiled, known: Known, times: _Times) -> Side | None:
    """Return the resolved spec of the lock, or None if the spec no longer gives the lock's values."""
    if read.points or read.point:
        return None
    try:
        request = recorded.request(read.words, read.shared_folder)
    except recorded.Refused:
        return None
    if not os.path.exists(request.spec):
        return None
    side, found = _of_spec(asked.text, request, known, times)
    if side is None or has_errors(found):
        return None
    now = {path: value.value for path, value in _flat(side.values).items() if path.partition(".")[0] in lock.SECTIONS}
    then = {path: value.value for path, value in _flat(read.values).items()}
    if repr(sorted(now.items())) != repr(sorted(then.items())):
        times.clear()  # the lock's own step is not known
        return None
    # The code that the lock was made with, which may have changed since.
    then_code = drift.records(read.document)
    return replace(side, ratc_version=read.ratc_version, own_code=then_code, unpredicted=False)


def _flat(values: Mapping[str, Value]) -> Mapping[str, Value]:
    from ratc.comparison.compare import flat

    return flat(values)


def _of_revision(side: Side, place: Revision) -> Side:
    def renamed(values: Mapping[str, Value]) -> dict[str, Value]:
        return {path: place.renamed(value) for path, value in values.items()}

    return replace(
        side,
        values=renamed(side.values),
        settings=renamed(side.settings),
        facts=renamed(side.facts),
        findings=tuple(map(place.with_revision, side.findings)),
    )


def _aligned(old: Side, new: Side) -> tuple[Side, Side]:
    """Reduce a spec to the values that a lock holds, if the other side is a lock."""
    if old.is_lock == new.is_lock:
        return old, new
    locked, open_ = (old, new) if old.is_lock else (new, old)
    values = {
        path: value
        for path, value in _flat(open_.values).items()
        if path.partition(".")[0] in lock.SECTIONS and (not locked.points or path in locked.values)
    }
    open_ = replace(open_, values=values)
    locked = replace(locked, points={name: text.rpartition(" (")[0] for name, text in locked.points.items()})
    return (locked, open_) if old.is_lock else (open_, locked)
