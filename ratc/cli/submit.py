"""Compile a spec for the scheduler of this machine, submit the script that comes out, and print the job's number.

The script is submitted as `ratc compile` writes it. Only the number goes to standard output; with another `--format`
than text it goes to standard error, and the document of the findings to standard output.
Exit status: as of all commands; with --wait that of the job (75: it saved, and is not finished).
"""

from __future__ import annotations

import re
from typing import Any

import click

from ratc.cli import options
from ratc.cli.command import declare
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.request import CompileRequest
from ratc.workflow.submit import Asked, submit


class _Job(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """A job's number, also that of one task of an array."""

    name = "job"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[0-9]+(_[0-9]+|\[[0-9]+\])?", value):
            self.fail(f"`{value}` is not the number of a job", param, ctx)
        return str(value)


@declare(
    __doc__,
    [
        *options.spec(),
        options.form(),
        options.no_predict(),
        click.Option(
            ["--target", "named_target"],
            metavar="T",
            help="slurm or lsf (default: the scheduler of this machine)",
            shell_complete=options.targets,
        ),
        options.folder(),
        options.dry_run("list the files and the command of submission; write and submit nothing", traces=True),
        options.flag("--live-check", "ask the scheduler first whether it would accept the job"),
        click.Option(
            ["--after"],
            multiple=True,
            type=_Job(),
            metavar="JOB",
            help="start the job when this one has ended with success; repeatable",
        ),
        options.flag("--wait", "wait until the job ends; exit with its status"),
        options.flag("--again", "submit even if the same job is in the queue or finished"),
        options.timeout(),
    ],
    {
        "ratc submit config.yaml": "compile and submit",
        "ratc submit config.yaml --dry-run": "show the files and the command of submission",
        "ratc submit config.yaml --after 1234 --wait": "start after another job, and wait for the end",
    },
    may_trust=True,
    request=options.request,
)
def command(request: CompileRequest, named_target: str | None, form: str, **how: Any) -> int:
    """Exit status 1 if nothing was submitted, or it is not known whether something was."""
    with FindingsPrinter("ratc submit", form) as printer:
        return submit(request, named_target, Asked(form=form, **how), printer)
