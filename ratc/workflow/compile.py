"""Compiles a spec to its artifacts, and writes them or compares them with the files in their folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from ratc import compiler, consumers, elastic, emit, files, layers, targets
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.fitting import open_batch
from ratc.fitting.check_batch import SKIP, Checks
from ratc.own_code import callables, digests
from ratc.plan import Plan, Values
from ratc.program import is_program, kind, words
from ratc.shell import quote
from ratc.targets import accelerate, deepspeed, job, lock
from ratc.targets.artifact import Artifact, Place, digest
from ratc.units import counted
from ratc.workflow import inputs, lookups
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.inputs import Gathered, Known, Loaded
from ratc.workflow.request import CompileRequest
from ratc.yaml.parse import MAX_BYTES, parse

UNCHANGED = "nothing, all files are up to date"
#: Called before a file is written, with the spec, the folder and its artifacts: an error stops the command.
Before: TypeAlias = Callable[[Loaded, str, Sequence[Artifact]], tuple[Diagnostic, ...]]


def compile_spec(
    request: CompileRequest,
    check: bool,
    printer: FindingsPrinter,
    before: Before | None = None,
    verify: bool = False,
    dry_run: bool = False,
) -> tuple[int, str]:
    """Compile and write, compare, or list the files that would be written.

    Returns the exit status and the folder of the artifacts.
    """
    refused = inputs.known_target(request.target)
    if refused:
        printer.print(refused)
        return 1, ""
    loaded = inputs.load(request)
    found = list(loaded.diagnostics)
    folder = ""
    if loaded.settings is not None:
        folder = folder_of(request, loaded.settings)
        refused = lookups.refused(loaded)
        found += refused
        # Code that does not fit its spec is not run for a prediction. Files that are only compared were checked when
        # they were compiled.
        asked = replace(request, predict=False) if refused else request
        made, diagnostics = make(asked, loaded, folder, checks=None if check else Checks())
        if is_untrusted(diagnostics):
            made = None
            # The written files would not be those of a prediction.
            severity = Severity.WARNING if check else Severity.ERROR
            diagnostics = tuple(replace(one, severity=severity) if one.code == "R446" else one for one in diagnostics)
            found += by_digest(request, loaded, folder) if check else ()
        found += diagnostics
        if made is not None and before is not None:
            found += before(loaded, folder, made.artifacts)
        if made is not None and not has_errors(found):
            found += _emit(request, made, folder, check, verify, dry_run)
    return (1 if printer.print(found) else 0), folder


def folder_of(request: CompileRequest, settings: Values) -> str:
    """The folder of the artifacts."""
    name = settings.get_as(str, "experiment_name")
    return request.output or os.path.join(request.folder, "compiled", name, request.target)


def is_untrusted(found: Sequence[Diagnostic]) -> bool:
    """Whether a prediction is missing because it would run code that the user does not trust."""
    return any(item.code == "R446" for item in found)


def by_digest(request: CompileRequest, loaded: Loaded, folder: str) -> Iterator[Diagnostic]:
    """Compare the recorded digests, for a check without the prediction that compiling again would need."""
    # Imported here: only a check reads what lies there.
    from ratc.compiled import drift

    helps = (f"run `{recorded(request)}`",)
    with emit.steady(folder):
        document, found = drift.read(folder)
        yield from found
        yield from drift.by_digest(folder, document, loaded.folder, helps, reached(loaded))


@dataclass(frozen=True, slots=True)
class Made:
    """The artifacts of a spec, before they are written; of an array the plan of its first point."""

    artifacts: tuple[Artifact, ...]
    plan: Plan

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.plan.values.get_as(int, "parallel.world_size")


def make(
    request: CompileRequest,
    loaded: Loaded,
    folder: str,
    known: Known | None = None,
    checks: Checks | None = None,
) -> tuple[Made | None, tuple[Diagnostic, ...]]:
    """Return the artifacts of a spec for a folder, not written: of one run, or of an array if the spec has a sweep.
    ``known`` keeps the decisions of predictions for later calls; with ``checks`` micro-batches that the spec gives are
    checked against their card.
    """
    assert loaded.settings is not None
    assert loaded.document is not None
    gathered, found = inputs.gather(request, loaded.settings)
    if gathered is None:
        return None, found
    points, said = compiler.points(loaded.document)
    study, more = compiler.study(loaded.document)
    found += (*said, *more, *consumers.read_shell(loaded.settings["environment.setup"]))
    if has_errors(found):
        return None, found
    target, no_predict, elsewhere = request.target, not request.predict, request.output is not None
    checks = None if no_predict else checks
    artifacts: tuple[Artifact, ...] | None
    plan: Plan | None
    if points or (study and target != "local"):
        # Imported here: most specs are of one run.
        from ratc.workflow import compile_array

        # Ray's job compiles its trials itself.
        no_predict = no_predict and (
            open_batch.leaves_open(loaded.settings) or (study is not None and study.backend == "ray")
        )
        place = _place(loaded, gathered, target, folder, elsewhere, no_predict)
        if study and study.backend == "ray":
            from ratc.workflow import compile_ray_study

            artifacts, plan, more = compile_ray_study.of_study(request, loaded, gathered, target, place, study, checks)
        elif study:
            artifacts, plan, more = compile_array.of_study(request, loaded, gathered, target, place, study, checks)
        else:
            artifacts, plan, more = compile_array.of_sweep(request, loaded, gathered, target, place, points, checks)
    else:
        plan, more, _ = inputs.decide(request, loaded.settings, gathered, known=known)
        found += more
        untraced = any(item.code in ("R315", "R316") for item in found)
        if plan is not None and checks is not None and not untraced:
            # Of an elastic plan each process of the fewest nodes has the most to hold.
            found += checks.check(plan.traced.fewest, request.folder)
        if plan is None or has_errors(found):
            return None, found
        if checks is not None and not (untraced or checks.untraceable or has_errors(found)):
            found += _show_time(plan.traced, request)
        no_predict = no_predict and open_batch.is_predicted(plan.traced)
        place = _place(loaded, gathered, target, folder, elsewhere, no_predict)
        artifacts, more = targets.artifacts(target, plan, place)
    found += more
    if artifacts is None or plan is None:
        return None, found
    return Made(artifacts, plan), found


def _show_time(plan: Plan, request: CompileRequest) -> tuple[Diagnostic, ...]:
    """Print the predicted time of the plan's step, and of the training if its samples are given. Code: R354.

    It enters no file: the same spec compiles to the same bytes on any machine.
    """
    known = plan.values["hardware.device"].value == "cuda" and plan.values["hardware.card"].value is not None
    known = known and not is_program(plan.settings)
    ran = os.path.exists(os.path.join(request.folder, str(plan.values["output_dir"].value), "results.json"))
    if not (known or ran) or os.environ.get(SKIP):
        return ()
    # Imported here: only a known card, or an earlier run, needs it.
    from ratc.fitting import step_time

    step, why = step_time.predict_step(plan, request.folder)
    if step is None:
        if known:
            say(f"ratc: the time of a step is not predicted: {why}")
        return ()
    step = step_time.with_loading(plan, step, request.loader_rate)
    for line in step_time.lines(plan, step, request.samples):
        say(f"ratc: {line}")
    # Of a range these are the times on the most nodes. A job that gets the fewest takes longest.
    fewest = plan.fewest
    if fewest.values["parallel.world_size"].value != plan.values["parallel.world_size"].value:
        slow, _ = step_time.predict_step(fewest, request.folder)
        if slow is not None:
            step = step_time.with_loading(fewest, slow, request.loader_rate)
            plan = fewest
            nodes = counted(plan.values.get_as(int, "parallel.nodes"), "node")
            for line in step_time.lines(plan, step, request.samples):
                say(f"ratc: on {nodes}, the fewest: {line}")
    return step_time.too_long(plan, step, request.samples)


def _emit(
    request: CompileRequest, made: Made, folder: str, check: bool, verify: bool, dry_run: bool
) -> tuple[Diagnostic, ...]:
    if check:
        # Imported here: only a check reads what lies there.
        from ratc.compiled import drift

        with emit.steady(folder):
            remove = emit.stale(folder, made.artifacts, former(folder))
            return drift.compare(folder, made.artifacts, remove, recorded(request))
    # Unchanged files were read when they were written.
    refused = consumers.reread(emit.changed(folder, made.artifacts))
    if verify:
        refused += consumers.verify([(one.path, one, made.world_size) for one in made.artifacts])
    if has_errors(refused):
        return refused
    if dry_run:
        changed = [one.path for one in emit.changed(folder, made.artifacts)]
        stale = emit.stale(folder, made.artifacts, former(folder))
        would("write", *(os.path.relpath(os.path.join(folder, name)) for name in changed))
        would("remove", *(os.path.relpath(os.path.join(folder, name)) for name in stale))
        if not (changed or stale):
            say(f"would write: {UNCHANGED}")
        return refused
    written, problems = emit.write(folder, made.artifacts, lambda: former(folder))
    if not problems:
        many = f"{len(written)} files" if len(written) > 8 else ", ".join(written)
        say(f"written: {many or UNCHANGED}")
    return (*refused, *problems)


def recorded(request: CompileRequest) -> str:
    """Return the command that compiles the same files again, from the shell's folder."""
    words = ["ratc", "compile", request.spec, "--target", request.target]
    words += ["--facts", request.facts] if request.facts else []
    for name in layers.SHORT_NAMES:
        given = request.short.get(name)
        words += [] if given is None else [f"--{name}"] if name == "debug" else [f"--{name}", given]
    words += [word for assignment in request.sets for word in ("--set", assignment)]
    words += ["--no-predict"] if not request.predict else []
    words += ["-o", request.output] if request.output else []
    return shlex.join(words)


def _place(loaded: Loaded, gathered: Gathered, target: str, folder: str, elsewhere: bool, no_predict: bool) -> Place:
    """``no_predict`` says that the files depend on the option of that name."""
    up, down = os.path.relpath(loaded.folder, folder), os.path.relpath(folder, loaded.folder)
    spec = loaded.inputs.spec
    command = ["ratc", "compile", f"{up}/{os.path.basename(spec.name)}", "--target", target]
    if gathered.file:
        command += ["--facts", os.path.relpath(gathered.file.name, folder)]
    sets: list[str] = []
    for override in loaded.inputs.overrides:
        assert loaded.settings is not None
        there = override.path in loaded.settings
        value = elastic.as_given(loaded.settings, override.path) if there else override.text
        sets += ["--set", f"{override.path}={as_word(value)}"]
    command += sets
    if no_predict:
        command.append("--no-predict")
    if elsewhere:
        command += ["-o", "."]
    sources = (spec, *loaded.inputs.overlays, gathered.file, gathered.cluster_file, gathered.rate_file)
    # The user that submits the job lets it run the spec's own code.
    trusts = ["--trust"] if loaded.settings and callables.of_all_points(loaded.settings) else []
    laid_over = "".join(f" {quote(word)}" for word in (*sets, *(["--no-predict"] if no_predict else []), *trusts))
    known = {os.path.relpath(file.name, loaded.folder): digest(file.data) for file in sources if file}
    return Place(
        up,
        down,
        os.path.basename(spec.name),
        " ".join(map(quote, command)),
        known,
        laid_over,
        own_code=reached(loaded),
    )


def reached(loaded: Loaded) -> dict[str, dict[str, Any]]:
    """Return the user's modules that a spec and its points use, as a lock records them."""
    assert loaded.settings is not None
    found = digests.modules(callables.of_all_points(loaded.settings), loaded.folder)
    if is_program(loaded.settings):
        texts = [str(word) for word in words(loaded.settings)]
        found |= digests.of_program(kind(loaded.settings), texts, loaded.folder)
    return {path: asdict(module) for path, module in sorted(found.items())}


def as_word(value: object) -> str:
    """Return a value as the word behind ``--set PATH=``."""
    from ratc.yaml.write import scalar

    return value if isinstance(value, str) else scalar(value)


def former(folder: str) -> list[str]:
    """Return the artifacts that the lock in the folder records, and the files of its array's points."""
    data = files.read(os.path.join(folder, lock.NAME), MAX_BYTES + 1)
    if data is None:
        return []
    document, _ = parse(lock.NAME, data)
    artifacts = document.root.find(("artifacts",)) if document else None
    named = artifacts.value if artifacts and isinstance(artifacts.value, dict) else {}
    points = _points(folder) if job.TABLE in named else []
    return [*(name for name in targets.NAMES if name in named), *points]


def _points(folder: str) -> list[str]:
    """Return the paths of all files that the points' folders can hold. Links are skipped: ratc makes none."""
    try:
        with os.scandir(os.path.join(folder, job.POINTS)) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    if os.path.islink(os.path.join(folder, job.POINTS)):
        return []
    own = (lock.NAME, deepspeed.NAME, accelerate.NAME)
    return [f"{job.POINTS}/{name}/{file}" for name in sorted(names) for file in own]
