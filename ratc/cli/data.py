"""List the content of a spec's data set before anything is trained: `ratc data check SPEC`.

Reads a sample of each split, or with --all every sample, and prints sizes, channels, values and classes. Samples that
the task cannot use are named, and the exit status is then 1. Four random samples are drawn with their masks or boxes.
A data set of your own is imported and run, as training does, if you trust the spec's folder.
Needs the runtime (`pip install 'ratc[runtime]'`).
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import click

from ratc.cli import options
from ratc.cli.command import PATH, declare
from ratc.console import would
from ratc.units import counted
from ratc.workflow import check_data, findings
from ratc.workflow.request import CompileRequest


@declare(
    __doc__,
    [
        *options.spec(),
        options.flag("--all", "read every sample; with large data sets this takes long", "every"),
        click.Option(
            ["--samples"],
            metavar="N",
            type=int,
            default=64,
            help="number of samples to read from each split (default: 64), without --all",
        ),
        click.Option(
            ["-o", "--output", "pictures"],
            metavar="DIR",
            default="data-check",
            type=PATH,
            help="folder for the pictures (default: data-check)",
        ),
        options.dry_run("check the spec only: read no data and draw nothing"),
    ],
    {
        "ratc data check config.yaml": "read 64 samples of each split, with pictures in `data-check/`",
        "ratc data check config.yaml --all -o pictures": "every sample",
    },
    may_trust=True,
    request=options.request,
)
def check(request: CompileRequest, every: bool, samples: int, pictures: str, dry_run: bool) -> int:
    """Exit status 1 if the spec or the data are refused, 2 without the runtime."""
    if samples < 1:
        print("ratc data check: --samples needs a number above 0", file=sys.stderr)
        return 2
    if find_spec("ratc_runtime") is None or find_spec("torch") is None:
        print("ratc data check: the runtime is not installed here\nhelp: pip install 'ratc[runtime]'", file=sys.stderr)
        return 2
    plan, folder, found = check_data.plan(request)
    if plan is None:
        findings.show(found, "ratc data check")
        return 1
    if dry_run:
        would("read", "every sample" if every else f"{counted(samples, 'sample')} of each split")
        would("write", os.path.join(pictures, "samples.png"))
        return 0
    return check_data.read_data(plan, folder, None if every else samples, pictures)


command = click.Group("data", {"check": check}, help=__doc__, no_args_is_help=False)
