"""Implements `ratc validate`: schema, rules, resolving for a target, and names that this machine lacks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ratc import compiler
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values
from ratc.resolve.infeasible import infeasible
from ratc.sweep import met_at, without_repeats
from ratc.workflow import apply_fixes, inputs, lookups
from ratc.workflow.request import CompileRequest

if TYPE_CHECKING:
    from ratc.sweep import Point
    from ratc.tuning.points import Study

#: One finding may hide others; nothing takes more rounds than keys lie within one another.
_ROUNDS = 32


def validate(loaded: inputs.Loaded, request: CompileRequest) -> tuple[Diagnostic, ...]:
    """Return the findings of a loaded spec, without a memory prediction. Codes: R1xx to R4xx."""
    if loaded.settings is None or loaded.document is None:
        return tuple(loaded.diagnostics)
    return tuple(without_repeats((*loaded.diagnostics, *_outcome(request, loaded))))


def has_gpus(settings: Values) -> bool:
    """Whether a spec trains on GPUs: it does not set their number to 0."""
    return not {settings[f"resources.{key}"].value for key in ("num_gpus", "gpus_per_node")} & {0}


def _outcome(request: CompileRequest, loaded: inputs.Loaded) -> Iterator[Diagnostic]:
    """Yield the findings of `compile` without a prediction, and those of the runtime on this machine."""
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
    """Yield the findings of resolving: R3xx, and R4xx if the target writes more than the files of one local run.

    A study's trial is left out if its values cannot be combined, as in `compile`.
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
    if settings["environment.setup"].value:
        from ratc import consumers  # few specs have such lines

        yield from consumers.read_shell(settings["environment.setup"])
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

    left: list[tuple[Point, Diagnostic]] = []
    for point, own in runs:
        said = compiler.plan_on(own, hardware)[1]
        why = infeasible(said) if study else None
        if why is not None:
            left.append((point, why))
        else:
            yield from _without_prediction(met_at(point, said), own)
    if study:
        yield from left_out(study, left)


def _without_prediction(found: Iterable[Diagnostic], settings: Values) -> Iterator[Diagnostic]:
    """Yield the findings without those on a default that `compile` replaces by a prediction. Missing GPUs on this
    machine become a warning.
    """
    for item in found:
        if item.code == "R305" and has_gpus(settings):
            continue
        if item.code == "R309":
            notes = (*item.notes, "the plan for its GPUs is not checked here")
            item = replace(item, severity=Severity.WARNING, notes=notes)
        yield item


def correct(request: CompileRequest, loaded: inputs.Loaded, dry_run: bool) -> tuple[Diagnostic, ...]:
    """Apply fixes, and repeat while they reveal more; prints each fix, or those of a dry run."""
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
