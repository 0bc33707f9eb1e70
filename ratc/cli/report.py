"""Write one page of HTML about a spec, or about what differs between two, to attach to a pull request.

`ratc report spec.yaml` tells of a spec, or of a compiled folder: the plan with its reasons, memory, cards, files.
`ratc report OLD NEW` tells of a difference; a side is what `ratc diff` takes. The page needs no network.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import click

from ratc import compiler, emit
from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.compiled import read_lock
from ratc.compiled.read_lock import Compiled
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan, Value, Values
from ratc.render.html.page import Report
from ratc.targets.artifact import Artifact
from ratc.workflow import findings, inputs, recorded
from ratc.workflow.inputs import Known, Loaded
from ratc.workflow.request import CompileRequest

_STDOUT = "-"


@declare(
    __doc__,
    [
        *options.spec("SPEC|OLD", "a spec, a compiled folder, or one side of a difference"),
        Argument("new", "NEW", "the other side, for what differs between two", type=PATH, required=False),
        # Of two sides, one that is a lock says for both what target it is of.
        click.Option(
            ["--target", "named_target"],
            metavar="T",
            help="local (default), slurm or lsf",
            shell_complete=options.targets,
        ),
        click.Option(
            ["-o", "--output", "page_file"],
            default="report.html",
            metavar="FILE",
            type=PATH,
            help="default report.html; - is standard output",
        ),
        click.Option(["--card", "cards"], multiple=True, metavar="CARD", help="say what fits on it; repeatable"),
        options.flag("--no-cards", "leave out what fits on which card"),
        options.form(),
        options.dry_run(),
    ],
    {
        "ratc report config.yaml": "of a spec, `report.html`",
        "ratc report main:config.yaml config.yaml -o change.html": "of what was changed since `main`",
    },
    request=options.request,
)
def command(
    request: CompileRequest,
    new: str | None,
    named_target: str | None,
    page_file: str,
    cards: tuple[str, ...],
    no_cards: bool,
    form: str,
    dry_run: bool,
) -> int:
    """Exit status 0 when the page was written, 1 on errors, 2 on misuse."""
    request = replace(request, target=named_target or "local")
    if page_file != _STDOUT and not page_file.endswith((".html", ".htm")):
        say(f"ratc report: `{page_file}` is no name for a page")
        print("help: name a file ending in .html, or - for standard output", file=sys.stderr)
        return 2
    if new is not None and (misuse := _only_for_one(request, cards, no_cards)):
        say(f"ratc report: {misuse} is for one spec, not for two sides")
        return 2
    refused = inputs.known_target(request.target)
    if refused:
        findings.show(refused, "ratc report", form, page_file == _STDOUT)
        return 1
    page, found = (
        _of_two(request, new, named_target) if new is not None else _of_one(request, None if no_cards else cards)
    )
    if page is not None:
        found = (*found, *_write(page_file, page, dry_run))
    failed = findings.show(dict.fromkeys(found), "ratc report", form, page_file == _STDOUT)
    if page is None or failed:
        return 1
    if page_file != _STDOUT and form == "text" and not dry_run:
        say(page_file, sys.stdout)
    return 0


def _only_for_one(request: CompileRequest, cards: Sequence[str], no_cards: bool) -> str:
    """The first option that was given and says nothing about two sides."""
    given: dict[str, object] = {"--set": request.sets, "--card": cards, "--no-cards": no_cards}
    given |= {f"--{name}": value for name, value in request.short.items()}
    return next((name for name, value in given.items() if value), "")


def _write(path: str, page: str, dry_run: bool) -> tuple[Diagnostic, ...]:
    """Code: R403."""
    if path == _STDOUT:
        sys.stdout.write(page)
        return ()
    if dry_run:
        would("write", path)
        return ()
    folder, name = os.path.split(path)
    return emit.write(folder or ".", (Artifact(name, page, "a browser"),), tuple)[1]


def _of_two(request: CompileRequest, later: str, target: str | None) -> tuple[str | None, tuple[Diagnostic, ...]]:
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
    """What is gathered for a page about one spec."""

    asked: CompileRequest
    read: Compiled | None = None
    known: Known = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def _of_one(request: CompileRequest, cards: Sequence[str] | None) -> tuple[str | None, tuple[Diagnostic, ...]]:
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
            return spec_page(_by_lock(told.read, f"its spec `{told.asked.spec}` is gone")), ()
    loaded = inputs.load(told.asked)
    report, found = _resolved(request.spec, cards, told, loaded)
    return (None if report is None else spec_page(report)), found


def _resolved(
    name: str, cards: Sequence[str] | None, told: _Told, loaded: Loaded
) -> tuple[Report | None, tuple[Diagnostic, ...]]:
    """The report of a spec that is resolved here, and all that was found on the way."""
    from ratc.fitting.report import foresee

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
    foreseen = foresee(plan, decision, loaded.folder, cards)
    files, note, said = _files(told, loaded)
    found = tuple(dict.fromkeys((*found, *said, *foreseen.found)))
    if has_errors(found):
        return None, found
    report = Report(
        name,
        target,
        plan,
        found,
        told.remarks,
        foreseen.account,
        foreseen.unpredicted,
        foreseen.drawing,
        foreseen.undrawn,
        foreseen.cards,
        foreseen.cards_note,
        foreseen.no_cards,
        files,
        note,
        {point.name: point.text for point in points},
    )
    return report, found


def _files(told: _Told, loaded: Loaded) -> tuple[list[tuple[str, str]], str, tuple[Diagnostic, ...]]:
    """What lies in the compiled folder, or what `ratc compile` would write, with a sentence on it."""
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
    more = f" Those of the sweep's points, {rest} more, are left out." if rest else ""
    if told.read is None:
        note = f"What `ratc compile` writes into {os.path.normpath(folder)}; comments say why.{more}"
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
    """What the lock alone can say."""
    from ratc.targets import NAMES, lock

    plan = Plan(Values({path: _kept(value) for path, value in read.values.items()}), Values({}))
    return Report(
        read.path,
        read.target,
        plan,
        remarks=(f"Only the lock itself can be told of: {why}.",),
        unpredicted="No memory is predicted: only the lock is known, and not what it was made from.",
        no_cards="What fits on other cards follows from the spec, which is not known.",
        files=_on_disk(read.folder, (*NAMES, lock.NAME)),
        files_note=f"What lies in {read.folder}.",
        points=read.points,
    )


def _kept(value: Value) -> Value:
    return replace(value, origin="derived" if value.reason else "spec")
