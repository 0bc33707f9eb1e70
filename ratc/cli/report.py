"""Write one page of HTML about a spec, or about the differences between two, to attach to a pull request.

`ratc report spec.yaml` is about a spec, or a compiled folder: the plan with its reasons, memory, cards, files.
`ratc report OLD NEW` is about a difference; the sides are those of `ratc diff`. The page needs no network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import click

from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.console import say, would
from ratc.diagnostics import Diagnostic
from ratc.workflow import findings, inputs, new_file, report
from ratc.workflow.request import CompileRequest

_STDOUT = "-"


@declare(
    __doc__,
    [
        *options.spec("SPEC|OLD", "a spec or a compiled folder; for differences, the first side"),
        Argument("new", "NEW", "the other side, for a page about differences", type=PATH, required=False),
        # If one of two sides is a lock, its target holds for both.
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
            help="the page to write (default: report.html); - means standard output",
        ),
        click.Option(
            ["--card", "cards"], multiple=True, metavar="CARD", help="predict the memory on this card, too; repeatable"
        ),
        options.flag("--no-cards", "leave out the table of cards"),
        options.form(),
        options.dry_run(traces=True),
    ],
    {
        "ratc report config.yaml": "write `report.html` about a spec",
        "ratc report main:config.yaml config.yaml -o change.html": "write a page about the changes since `main`",
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
        say(f"ratc report: `{page_file}` is not the name of a page")
        print("help: name a file ending in .html, or - for standard output", file=sys.stderr)
        return 2
    if new is not None and (misuse := _only_for_one(request, cards, no_cards)):
        say(f"ratc report: {misuse} needs one spec, and two sides are given")
        return 2
    refused = inputs.known_target(request.target)
    if refused:
        findings.show(refused, "ratc report", form, page_file == _STDOUT)
        return 1
    if new is not None:
        page, found = report.of_two(request, new, named_target)
    else:
        page, found = report.of_one(request, None if no_cards else cards)
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
    problem = new_file.write(path, page, force=True)
    return (problem,) if problem else ()
