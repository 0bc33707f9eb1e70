"""Read configurations of other tools and write a spec, with a list of the settings that it could not carry over.

Taken are the original framework's YAML, Accelerate's YAML, DeepSpeed's JSON and simple sbatch and bsub scripts; several
files make one spec, and the first that says something counts. Exit status 1 if nothing was written.
"""

from __future__ import annotations

import os
import sys

import click

from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.console import say, would
from ratc.importers import detect
from ratc.workflow import findings, new_file
from ratc.workflow.import_files import import_files


@declare(
    __doc__,
    [
        Argument(
            "files",
            "FILE",
            "files to import; if two disagree, the first one wins",
            type=PATH,
            nargs=-1,
            required=True,
        ),
        click.Option(
            ["-o", "--output"],
            default="-",
            metavar="SPEC",
            type=PATH,
            help="the spec to write; - means standard output",
        ),
        click.Option(["--from", "kind"], metavar="KIND", help=f"the kind of the files: {', '.join(detect.KINDS)}"),
        options.form(),
        options.flag("--force", "overwrite an existing file"),
        options.dry_run(),
    ],
    {
        "ratc import job.sbatch ds_config.json": "print the spec that these files make together",
        "ratc import accelerate.yaml -o config.yaml": "write it",
    },
)
def command(files: tuple[str, ...], output: str, kind: str | None, form: str, force: bool, dry_run: bool) -> int:
    """Exit status 1 if a file cannot be imported or the spec not be written."""
    text, said = import_files(files, kind)
    printed = output == "-"
    if text is None:
        findings.show(said, "ratc import", form, printed)
        return 1
    problem = None
    if printed:
        sys.stdout.write(text)
    elif dry_run:
        problem = new_file.there(output, force)
    else:
        problem = new_file.write(output, text, force)
    if problem is None and not printed:
        would("write", output) if dry_run else say(f"written: {os.path.relpath(output)}")
    findings.show((problem,) if problem else said, "ratc import", form, printed)
    return 1 if problem else 0
