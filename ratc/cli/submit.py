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
            self.fail(f"`{value}` is not a job's number", param, ctx)
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
            help="slurm or lsf, instead of this machine's",
            shell_complete=options.targets,
        ),
        options.folder(),
        options.dry_run("show the files and the submission, and do neither"),
        options.flag("--live-check", "ask the scheduler first whether it would take the job"),
        click.Option(
            ["--after"],
            multiple=True,
            type=_Job(),
            metavar="JOB",
            help="start when this job has ended well; may be given several times",
        ),
        options.flag("--wait", "wait for the job's end; exit with its status"),
        options.flag("--again", "submit even if the same is in the queue or finished"),
        options.timeout(),
    ],
    {
        "ratc submit config.yaml": "compile and submit",
        "ratc submit config.yaml --dry-run": "see the submission",
        "ratc submit config.yaml --after 1234 --wait": "after another job, and wait for the end",
    },
    may_trust=True,
    request=options.request,
)
def command(request: CompileRequest, named_target: str | None, form: str, **how: Any) -> int:
    """Exit status 1 if nothing was submitted, or it is not known whether something was."""
    with FindingsPrinter("ratc submit", form) as printer:
        return submit(request, named_target, Asked(form=form, **how), printer)
