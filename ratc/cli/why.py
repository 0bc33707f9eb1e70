"""Say why a job ended, or how it stands: one cause, the line of a log that shows it, and the line of the spec to
change.

Reads the logs of the nodes and of the job, `results.json` and `STOPPED` in the output folder, and asks the scheduler
for its account of the job. Nothing is written, and no code of a spec is run.
Exit status: 0 if nothing is wrong, 1 with a cause.
"""

from __future__ import annotations

import os
import sys

import click

from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.console import say
from ratc.diagnostics import Severity
from ratc.render import text
from ratc.workflow import findings
from ratc.workflow.why import Asked, why


@declare(
    __doc__,
    [
        Argument(
            "what",
            "JOB|FOLDER",
            "number of a job, a spec, its compiled folder or its output folder (default: this folder)",
            required=False,
            default=".",
        ),
        click.Option(
            ["--log", "logs"],
            multiple=True,
            type=PATH,
            metavar="FILE",
            help="a file with the output of the run; repeatable",
        ),
        options.timeout(),
        options.form(),
    ],
    {
        "ratc why": "explain the job that was submitted last in this folder or below",
        "ratc why 123456": "explain a job by its number",
        "ratc why outputs/demo --log run.log": "explain a run on this machine whose output is in run.log",
    },
)
def command(what: str, logs: tuple[str, ...], timeout: float, form: str) -> int:
    """Exit status 0 if the run is finished, running or waiting, 1 with a cause."""
    told = why(Asked(what, logs, timeout))
    if not told.about or form != "text":
        return 1 if findings.show(told.found, "ratc why", form) else 0
    say(told.about)
    [cause] = told.found
    print(text.diagnostic(cause, sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    say(f"`ratc explain {cause.code}` says more")
    return 1 if cause.severity is Severity.ERROR else 0
