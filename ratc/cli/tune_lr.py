"""Find a learning rate by a range test: train for some steps with one that grows, draw the curve, suggest a value.

The spec's own model, data, loss and global batch, in one process on this machine; nothing is kept of the model. The
outcome lies in `learning-rate/` below the output folder: curve.json, curve.svg, and the compiled files it was made by.
"""

from __future__ import annotations

import sys

import click

from ratc.cli import options
from ratc.cli.command import declare
from ratc.workflow import tune_lr
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.request import CompileRequest


@declare(
    __doc__,
    [
        *options.spec(),
        options.form(),
        options.no_predict(),
        click.Option(["--low"], metavar="RATE", help="the first rate (default: 1e-6)"),
        click.Option(["--high"], metavar="RATE", help="the last rate (default: 1)"),
        click.Option(["--steps"], metavar="N", help="optimizer steps at most (default: 100)"),
        options.dry_run(),
    ],
    {
        "ratc tune lr config.yaml": "a hundred steps, from 1e-6 to 1",
        "ratc tune lr config.yaml --low 1e-5 --high 0.1 --steps 200": "more steps in a narrower range",
    },
    may_trust=True,
    request=options.request,
)
def command(
    request: CompileRequest, form: str, low: str | None, high: str | None, steps: str | None, dry_run: bool
) -> int:
    """Exit status 1 on errors and if no rate can be suggested, 2 for a range that is none."""
    with FindingsPrinter("ratc tune lr", form) as printer:
        test = tune_lr.prepare(request, printer, dry_run)
    if test is None:
        return 1
    if dry_run:
        tune_lr.announce(test)
        return 0
    ends = {"low": low, "high": high, "steps": steps}
    given = [f"--{name}={text}" for name, text in ends.items() if text is not None]
    return tune_lr.run(test, given, sys.stdout if form == "text" else sys.stderr)
