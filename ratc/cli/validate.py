"""Check a spec against the schema and the rules, resolve it for a target, and look up the files and code that it names.

Nothing is run, traced or written: whether the model fits on its card, only `ratc compile` predicts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ratc import compiler
from ratc.cli import options
from ratc.cli.command import declare
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values
from ratc.sweep import met_at, once
from ratc.workflow import apply_fixes, findings, inputs, lookups
from ratc.workflow.request import CompileRequest

if TYPE_CHECKING:
    from ratc.sweep import Point
    from ratc.tuning.points import Study

#: One finding may hide others; nothing takes more rounds than keys lie within one another.
_ROUNDS = 32


@declare(
    __doc__,
    [
        *options.spec(),
        options.target(),
        options.form(),
        options.flag("--fix", "correct keys that are mistyped and values of the wrong form"),
        options.dry_run("show the corrections of --fix, and write nothing"),
    ],
    {
        "ratc validate config.yaml": "report its mistakes",
        "ratc validate config.yaml --target slurm": "for a job on a cluster",
        "ratc validate config.yaml --fix": "correct mistyped words",
    },
    request=options.request,
)
def command(request: CompileRequest, form: str, fix: bool, dry_run: bool) -> int:
    """Exit status 1 when there is an error."""
    refused = inputs.known_target(request.target)
    if refused:
        findings.show(refused, "ratc validate", form)
        return 1
    loaded = inputs.load(request)
    problems = _fixed(request, loaded, dry_run) if fix else ()
    if fix and not dry_run:
        loaded = inputs.load(request)
    found = [*loaded.diagnostics, *problems]
    if loaded.settings is not None and loaded.document is not None:
        found = once((*found, *_outcome(request, loaded)))
    if findings.show(found, "ratc validate", form):
        return 1
    say(f"{request.spec}: valid")
    if loaded.settings is not None and _has_gpus(loaded.settings):
        say("not checked: whether the model fits on its card, which `ratc compile` predicts")
    return 0


def _has_gpus(settings: Values) -> bool:
    return not {settings[f"resources.{key}"].value for key in ("num_gpus", "gpus_per_node")} & {0}


def _outcome(request: CompileRequest, loaded: inputs.Loaded) -> Iterator[Diagnostic]:
    """What `compile` would find but for a prediction, and what the runtime would find on this machine."""
    assert loaded.settings is not None
    assert loaded.document is not None
    points, said = compiler.points(loaded.document)
    study, more = compiler.study(loaded.document)
    yield from (*said, *more)
    trials = (*points, *(study.points if study else ()))
    runs = [compiler.check_point(loaded.document, point) for point in trials]
    yield from (item for _, said in runs for item in said)
    every = [(point, own) for point, (own, _) in zip(trials, runs, strict=True) if own is not None]
    for settings in [own for _, own in every] if trials else [loaded.settings]:
        yield from lookups.check(settings, loaded.folder)
    yield from _resolved(request, loaded, every, study)


def _resolved(
    request: CompileRequest, loaded: inputs.Loaded, runs: Sequence[tuple[Point, Values]], study: Study | None
) -> Iterator[Diagnostic]:
    """What resolving finds: R3xx, and R4xx if the target writes more than the files of one local run.

    A trial of a study whose values do not go together is left out, as `compile` does.
    """
    assert loaded.settings is not None
    settings = loaded.settings
    several = settings["environment.container"].value or settings.get_as(int, "resources.nodes") > 1
    if request.target != "local" or several or (runs and study is None):
        # Imported here: only scripts need the templates.
        from ratc.workflow import compile as compiling

        folder = os.path.join(loaded.folder, "compiled", settings.get_as(str, "experiment_name"), request.target)
        yield from _without_prediction(compiling.make(replace(request, predict=False), loaded, folder)[1], settings)
        return
    gathered, found = inputs.gather(request, settings)
    yield from found
    if gathered is None:
        return
    hardware, found = gathered.settled(settings)
    yield from _without_prediction(found, settings)
    if hardware is None:
        return
    if not runs:
        yield from _without_prediction(compiler.plan_on(settings, hardware)[1], settings)
        return
    # Imported here: most specs are of one run.
    from ratc.workflow.compile_array import left_out
    from ratc.workflow.points import INFEASIBLE

    left: list[tuple[Point, Diagnostic]] = []
    for point, own in runs:
        said = compiler.plan_on(own, hardware)[1]
        errors = [item for item in said if item.severity is Severity.ERROR]
        if study and errors and all(item.code in INFEASIBLE for item in errors):
            left.append((point, errors[0]))
        else:
            yield from _without_prediction(met_at(point, said), own)
    if study:
        yield from left_out(study, left)


def _without_prediction(found: Iterable[Diagnostic], settings: Values) -> Iterator[Diagnostic]:
    """The findings, but a default that `compile` replaces by a prediction is none. That this machine lacks the GPUs is
    no fault of the spec: the rest is not checked then.
    """
    for item in found:
        if item.code == "R305" and _has_gpus(settings):
            continue
        if item.code == "R309":
            notes = (*item.notes, "how it trains on its GPUs is not checked here")
            item = replace(item, severity=Severity.WARNING, notes=notes)
        yield item


def _fixed(request: CompileRequest, loaded: inputs.Loaded, dry_run: bool) -> tuple[Diagnostic, ...]:
    """Correct what can be corrected, again while that lets more be seen; says what it did."""
    for _ in range(_ROUNDS):
        names = [file.name for file in (loaded.inputs.spec, *loaded.inputs.overlays)]
        told, problems = apply_fixes.fix(names, loaded.diagnostics, dry_run)
        if dry_run:
            would("fix", *told)
            return problems
        for line in told:
            say(f"fixed: {line}")
        if problems or not told:
            return problems
        loaded = inputs.load(request)
    return ()
