"""Run the study that a spec's `tuning` describes on this machine, or gather what its array job has found.

Every trial is compiled as a run of its own before it starts. Finished trials are not run again, and interrupted ones go
on from their checkpoints: the same command continues a study. The outcome lies in `study/` below the output folder:
trials.csv, study.json, study.svg, and `best/`, the best trial's compiled files and its overlay.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from ratc.cli import options
from ratc.cli.command import PATH, FilePath, declare, words
from ratc.workflow import tune_lr
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.request import CompileRequest
from ratc.workflow.tune import tune

#: The help of `ratc tune lr`.
_RATE = """
Find a learning rate by a range test: train some steps with a rate that grows, draw the curve, suggest a value.

It trains the model of the spec with its data, loss and global batch, in one process on this machine, and keeps no
weights. The result lies in `learning-rate/` in the output folder: curve.json, curve.svg, and the compiled files.
"""


class _SpecOrCommand(FilePath):
    """A spec; `lr` before one is a command of its own."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Return `lr` for its prefixes, or else the shell's files."""
        lr = words(("lr",), incomplete) if incomplete else []
        return lr or super().shell_complete(ctx, param, incomplete)


@declare(
    __doc__,
    [
        *options.spec(kind=_SpecOrCommand()),
        options.form(),
        options.no_predict(),
        options.flag("--collect", "run nothing; show the results so far"),
        options.dry_run("list the trials and run nothing", traces=True),
        # A study's job asks for it: of which lock the study is that is finished.
        click.Option(["--job-lock"], metavar="FILE", type=PATH, hidden=True),
        click.Option(
            ["--ray-address"], metavar="HOST:PORT", help="address of a running Ray cluster, instead of a new one"
        ),
    ],
    {
        "ratc tune study.yaml --dry-run": "list the trials",
        "ratc tune study.yaml": "run them; continue them if some have run",
        "ratc tune study.yaml --collect": "show the results so far",
        "ratc tune lr config.yaml": "find a learning rate",
    },
    may_trust=True,
    request=options.request,
)
def command(
    request: CompileRequest, form: str, collect: bool, dry_run: bool, job_lock: str | None, ray_address: str | None
) -> int:
    """Exit status 1 on errors and if no trial has a result, 130 if it was interrupted."""
    with FindingsPrinter("ratc tune", form) as printer:
        return tune(
            request, sys.stdout if form == "text" else sys.stderr, collect, dry_run, job_lock, ray_address, printer
        )


@declare(
    _RATE,
    [
        *options.spec(),
        options.form(),
        options.no_predict(),
        click.Option(["--low"], metavar="RATE", help="the first rate (default: 1e-6)"),
        click.Option(["--high"], metavar="RATE", help="the last rate (default: 1)"),
        click.Option(["--steps"], metavar="N", help="largest number of optimizer steps (default: 100)"),
        options.dry_run(traces=True),
    ],
    {
        "ratc tune lr config.yaml": "a hundred steps, from a rate of 1e-6 to 1",
        "ratc tune lr config.yaml --low 1e-5 --high 0.1 --steps 200": "more steps in a narrower range",
    },
    may_trust=True,
    request=options.request,
)
def learning_rate(
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
