"""Explains the origin of the values of a spec or of a compiled folder."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ratc import compiler
from ratc.compiled import read_lock
from ratc.compiled.read_lock import Compiled
from ratc.console import say
from ratc.diagnostics import Diagnostic, Severity, did_you_mean, has_errors
from ratc.fitting import open_batch
from ratc.markup import visible
from ratc.plan import Plan, Value, Values
from ratc.program import used
from ratc.secrets.redact import redact
from ratc.workflow import findings, inputs, recorded
from ratc.workflow.inputs import Loaded
from ratc.workflow.request import CompileRequest

if TYPE_CHECKING:
    from ratc.sweep import Point


@dataclass(frozen=True, slots=True)
class Asked:
    """The question: ``path`` names a value or a section, ``point`` a point of a sweep, ``form`` the output form."""

    path: str | None
    whole: bool
    point: str | None
    form: str


def explain(request: CompileRequest, asked: Asked) -> int:
    """Print the origin of values of a spec or of a compiled folder; returns the exit status.

    Codes: R108 for a path that is not known, and those of reading and resolving a spec.
    """
    if os.path.isdir(request.spec) or read_lock.is_compiled(request.spec):
        return _of_compiled(asked, request)
    refused = inputs.known_target(request.target)
    if refused:
        return _refused(asked, refused)
    return _explained(asked, request, inputs.load(request), None)


def _of_compiled(asked: Asked, given: CompileRequest) -> int:
    read, found = read_lock.read(given.spec)
    if read is None:
        return _refused(asked, found)
    laid = [f"--{name}" for name in given.short]
    laid += ["--set"] * bool(given.sets) + ["--facts"] * bool(given.facts)
    laid += ["--target"] * (given.target not in ("local", read.target))
    if laid:
        words = f"`{laid[0]}` needs a spec: a compiled folder is explained with the options in the head of its lock"
        say(f"ratc explain: {words}")
        return 2
    try:
        request = recorded.request(read.words, read.shared_folder)
    except recorded.Refused as reason:
        return _by_lock(asked, read, str(reason))
    for path in (request.spec, request.facts):
        if path and not os.path.exists(path):
            return _by_lock(asked, read, f"`{path}`, from which it was compiled, does not exist any more")
    loaded = inputs.load(request)
    if loaded.settings is None:
        return _by_lock(asked, read, f"`{request.spec}` has errors now; `ratc validate` shows them")
    return _explained(asked, request, loaded, read)


def _explained(asked: Asked, request: CompileRequest, loaded: Loaded, read: Compiled | None) -> int:
    from ratc import explain

    remarks: list[str] = []
    points, found = compiler.points(loaded.document) if loaded.document and loaded.settings else ((), ())
    if loaded.settings is None or loaded.document is None or has_errors(found):
        return _refused(asked, (*loaded.diagnostics, *found))
    settings: Values | None = loaded.settings
    named = asked.point or (read.point if read else "")
    if points or named:
        point = next((point for point in points if point.name == named), None) if named else points[0]
        if point is None:
            return _no_point(named, points)
        remarks.append(f"of the sweep's {len(points)} points this is {point.name}: {point.text}")
        settings, found = compiler.check_point(loaded.document, point)
    if settings is None:
        return _refused(asked, found)
    gathered, found = inputs.gather(request, settings)
    if gathered is None:
        return _refused(asked, found)
    plan, said, decision = inputs.decide(request, settings, gathered, predicts=False)
    warnings: list[Diagnostic] = []
    if plan is None:
        return _refused(asked, said)
    # Which values a plan has depends on its strategy.
    if predict := open_batch.is_predicted(plan.traced) and plan.settings["parallel.strategy"].value == "auto":
        first = said
        plan, said, decision = inputs.decide(request, settings, gathered)
        if plan is None:
            return _refused(asked, said)
        warnings = [item for item in said if item not in first] if decision is None else []
    plan = replace(plan, settings=used(plan.settings))
    paths = list(plan.values) if asked.path is None else explain.find(plan, asked.path)
    if not paths:
        return _unknown(asked.path or "", asked.form, explain.known_paths(plan))
    # Tracing takes seconds: only for a value that rests on its decision.
    if not predict and (predict := open_batch.is_predicted(plan.traced) and explain.decided_by_memory(plan, paths)):
        plan, more, decision = inputs.decide(request, settings, gathered)
        if plan is None:
            return _refused(asked, more)
        warnings = [item for item in more if item not in said] if decision is None else []
    if points and not named:
        from ratc.workflow import varying

        remarks += varying.remarks(loaded.document, loaded.settings, gathered, points, paths)
    # Without its prediction, a value of the lock cannot be compared with the inputs.
    if read is not None and not (predict and decision is None):
        remarks += _changed_since_lock(plan, read, paths, " on this machine" if gathered.machine else "")
    _show(asked, plan, paths, remarks, warnings)
    # The lock keeps no prediction of a micro-batch that the spec gives, but it is told here.
    of_memory = paths == ["training.micro_batch_size"] or (len(paths) == 1 and paths[0].startswith("memory."))
    if of_memory and asked.form == "text":
        # Imported here: it takes longer than the rest of the command.
        from ratc.fitting import own_step

        print("\n" + "\n".join(map(visible, own_step.lines(plan.traced, decision, loaded.folder))))
    if paths == ["training.activation_checkpointing"] and asked.form == "text" and decision and decision.recomputed:
        from ratc.fitting import breakdown

        print("\n" + "\n".join(map(visible, breakdown.recomputed(decision.recomputed))))
    return 0


def _no_point(name: str, points: Sequence[Point]) -> int:
    what = f"the sweep has no point `{visible(name)}`" if points else "`--point` is for a sweep, and the spec has none"
    say(f"ratc explain: {what}")
    for text in did_you_mean(name, [point.name for point in points]):
        say(f"help: {text}")
    return 1


def _changed_since_lock(plan: Plan, read: Compiled, paths: list[str], where: str) -> list[str]:
    """Return a line for each value of the lock that differs from the value that its inputs give now."""
    from ratc.comparison.compare import flat, same
    from ratc.secrets.redact import shown

    now = flat({path: plan.values[path] for path in paths if path in plan.values})
    told = []
    for path, value in now.items():
        then = read.values.get(path)
        if then is not None and not same(then.value, value.value):
            old, new = shown(path, then.value), shown(path, value.value)
            words = f"the lock says {old}, but its inputs give {new} now{where}"
            told.append(f"{path}: {words}; `ratc check` shows why")
    return told


def _show(
    asked: Asked,
    plan: Plan,
    paths: Sequence[str],
    remarks: Sequence[str],
    warnings: Sequence[Diagnostic] = (),
) -> None:
    from ratc import explain
    from ratc.render import plan as render
    from ratc.render.findings import json as findings_json

    if asked.form == "json":
        links = [link for path in paths if (link := explain.tree(plan, path))]
        told = json.loads(findings_json.document(warnings, "ratc explain"))["findings"]
        sys.stdout.write(render.document(links, remarks, told))
        return
    if asked.form == "markdown":
        sys.stdout.write(render.markdown(plan, paths, remarks))
    if warnings or asked.form != "markdown":
        findings.show(warnings, "ratc explain", asked.form, taken=asked.form == "markdown")
    if asked.form != "text":
        return
    for remark in remarks:
        say(f"note: {redact(remark)}")
    if asked.whole or (asked.path is not None and len(paths) > 1):
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        sys.stdout.write(render.table(plan, paths, width))
        return
    for path in paths:
        link = explain.tree(plan, path)
        assert link is not None
        sys.stdout.write(render.chain(link))


def _by_lock(asked: Asked, read: Compiled, why: str) -> int:
    """Explain the values from the lock alone; ``why`` says why its spec cannot be used."""
    from ratc import explain

    plan = Plan(Values({path: _kept(value) for path, value in read.values.items()}), Values({}))
    paths = list(plan.values) if asked.path is None else explain.find(plan, asked.path)
    if not paths:
        return _unknown(asked.path or "", asked.form, list(plan.values))
    _show(asked, plan, paths, [f"only the file `{read.path}` itself can be explained: {why}"])
    return 0


def _kept(value: Value) -> Value:
    return Value(value.value, "derived" if value.reason else "spec", value.reason, span=value.span)


def _refused(asked: Asked, found: Sequence[Diagnostic]) -> int:
    findings.show((item for item in found if item.severity is Severity.ERROR), "ratc explain", asked.form)
    return 1


def _unknown(path: str, form: str, known: list[str]) -> int:
    from ratc.render import plan as render

    found = Diagnostic("R108", f"there is no value `{path}`", helps=did_you_mean(path, known))
    if form == "json":
        from ratc.render.findings import json as findings_json

        told = json.loads(findings_json.document((found,), "ratc explain"))["findings"]
        sys.stdout.write(render.document((), (), told))
        return 1
    findings.show((found,), "ratc explain", form)
    return 1
