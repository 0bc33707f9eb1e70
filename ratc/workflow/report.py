"""Gathers the content of a page for reviewers, of one spec or of two sides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from ratc import compiler, emit
from ratc.compiled import read_lock
from ratc.compiled.read_lock import Compiled
from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan, Value, Values
from ratc.render.html.page import Report
from ratc.workflow import inputs, recorded
from ratc.workflow.inputs import Known, Loaded
from ratc.workflow.request import CompileRequest


def of_two(request: CompileRequest, later: str, target: str | None) -> tuple[str | None, tuple[Diagnostic, ...]]:
    """Return the page of the differences of two sides, or the reason if there is none. Codes: those of `ratc diff`."""
    # Imported here: only a difference needs them.
    from ratc.comparison.compare import compare
    from ratc.render.html.page import diff_page
    from ratc.workflow import diff_inputs

    with ExitStack() as stack:
        old, new = (diff_inputs.Asked(name, target, request.facts) for name in (request.spec, later))
        both, found = diff_inputs.pair(old, new, stack)
        if both is None:
            return None, found
        return diff_page(compare(*both)), ()


@dataclass
class _Told:
    """The content gathered for a page about one spec."""

    asked: CompileRequest
    read: Compiled | None = None
    known: Known = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def of_one(request: CompileRequest, cards: Sequence[str] | None) -> tuple[str | None, tuple[Diagnostic, ...]]:
    """Return the page of one spec, or the reason if there is none. ``cards`` are those of its table; None omits it."""
    from ratc.render.html.page import spec_page

    told = _Told(request)
    if os.path.isdir(request.spec) or read_lock.is_compiled(request.spec):
        told.read, found = read_lock.read(request.spec)
        if told.read is None:
            return None, found
        try:
            told.asked = recorded.request(told.read.words, told.read.shared_folder)
        except recorded.Refused as reason:
            return spec_page(_by_lock(told.read, str(reason))), ()
        if not os.path.exists(told.asked.spec):
            return spec_page(_by_lock(told.read, f"its spec `{told.asked.spec}` does not exist any more")), ()
    loaded = inputs.load(told.asked)
    report, found = _resolved(request.spec, cards, told, loaded)
    return (None if report is None else spec_page(report)), found


def _resolved(
    name: str, cards: Sequence[str] | None, told: _Told, loaded: Loaded
) -> tuple[Report | None, tuple[Diagnostic, ...]]:
    """Return the report of a spec that is resolved here, and the findings."""
    from ratc.fitting.report import fit_report

    found = loaded.diagnostics
    if loaded.settings is None or loaded.document is None:
        return None, found
    points, said = compiler.points(loaded.document)
    found += said
    if has_errors(found):
        return None, found
    settings: Values | None = loaded.settings
    if points:
        wanted = told.read.point if told.read else ""
        point = next((point for point in points if point.name == wanted), points[0])
        told.remarks.append(f"Of the sweep's {len(points)} points this is {point.name}: {point.text}.")
        settings, said = compiler.check_point(loaded.document, point)
        found += said
    if settings is None:
        return None, found
    target = told.asked.target
    plan, said, _, decision = inputs.decided(told.asked, settings, known=told.known)
    found += said
    if plan is None:
        return None, found
    fitted = fit_report(plan.traced, decision, loaded.folder, cards)
    files, note, said = _files(told, loaded)
    found = tuple(dict.fromkeys((*found, *said, *fitted.found)))
    if has_errors(found):
        return None, found
    report = Report(
        name,
        target,
        plan,
        found,
        told.remarks,
        fitted.card_memory,
        fitted.unpredicted,
        fitted.drawing,
        fitted.undrawn,
        fitted.cards,
        fitted.cards_note,
        fitted.no_cards,
        files,
        note,
        {point.name: point.text for point in points},
    )
    return report, found


def _files(told: _Told, loaded: Loaded) -> tuple[list[tuple[str, str]], str, tuple[Diagnostic, ...]]:
    """Return the files in the compiled folder, or those that `ratc compile` would write, with a sentence on them."""
    from ratc.workflow.compile import make

    assert loaded.settings is not None
    target = told.asked.target
    name = loaded.settings.get_as(str, "experiment_name")
    folder = told.read.folder if told.read else os.path.join(loaded.folder, "compiled", name, target)
    if told.read and told.read.point:
        folder = os.path.dirname(os.path.dirname(folder))
    made, found = make(told.asked, loaded, folder, known=told.known)
    if made is None:
        return [], "", found
    shown = [artifact for artifact in made.artifacts if "/" not in artifact.path]
    rest = len(made.artifacts) - len(shown)
    more = f" The {rest} files of the sweep's points are left out." if rest else ""
    if told.read is None:
        note = f"What `ratc compile` writes into {os.path.normpath(folder)}; comments give the reasons.{more}"
        return [(artifact.path, artifact.text) for artifact in shown], note, found
    moved = [artifact.path for artifact in emit.changed(folder, shown)]
    if moved:
        text = f"{', '.join(moved)} in the folder {'is' if len(moved) == 1 else 'are'} not what the inputs give now"
        told.remarks.append(f"{text}; `ratc check` says why. The files below are those in the folder.")
    return _on_disk(folder, [artifact.path for artifact in shown]), f"What lies in {folder}.{more}", found


def _on_disk(folder: str, names: Sequence[str]) -> list[tuple[str, str]]:
    read = ((name, emit.on_disk(folder, name)) for name in names)
    return [(name, data.decode("utf-8", "replace")) for name, data in read if data is not None]


def _by_lock(read: Compiled, why: str) -> Report:
    """Return the report of a lock alone; ``why`` says why its spec cannot be used."""
    from ratc.targets import NAMES, lock

    plan = Plan(Values({path: _kept(value) for path, value in read.values.items()}), Values({}))
    return Report(
        read.path,
        read.target,
        plan,
        remarks=(f"Only the lock itself can be shown: {why}.",),
        unpredicted="No memory is predicted: the spec of the lock is not known.",
        no_cards="Other cards are not predicted: the spec is not known.",
        files=_on_disk(read.folder, (*NAMES, lock.NAME)),
        files_note=f"What lies in {read.folder}.",
        points=read.points,
    )


def _kept(value: Value) -> Value:
    return replace(value, origin="derived" if value.reason else "spec")
