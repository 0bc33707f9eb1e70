"""Write facts of the cluster, or of this machine, as the scheduler or the driver reports them.

`ratc probe slurm` and `ratc probe lsf` write cluster facts on a login node, `ratc probe local` hardware facts for
`--facts`. Its commands only read. Values that they do not report are left as questions, marked `# ?`.
"""

from __future__ import annotations

import click

from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.console import say, would
from ratc.workflow import new_file
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.probe import probe, questions


@declare(
    __doc__,
    [
        Argument(
            "what",
            "slurm|lsf|local",
            "the scheduler to ask, or local for this machine",
            type=click.Choice(["slurm", "lsf", "local"]),
        ),
        click.Option(
            ["-o", "--output"], metavar="FILE", type=PATH, help="the file to write (default: standard output)"
        ),
        click.Option(["--name"], metavar="NAME", help="name of the cluster (default: the scheduler's)"),
        click.Option(
            ["--timeout"], type=float, default=60.0, metavar="S", help="seconds to wait for each command (default: 60)"
        ),
        options.flag("--force", "overwrite an existing file"),
        options.dry_run("list the commands to run and the file to write, and do neither"),
        options.form(),
    ],
    {
        "ratc probe slurm -o clusters/ours.yaml": "write the facts of a cluster; run it on its login node",
        "ratc probe local -o facts.yaml": "write the facts of this machine, for `--facts`",
    },
)
def command(
    what: str, output: str | None, name: str | None, timeout: float, force: bool, form: str, dry_run: bool
) -> int:
    """Exit status 1 if nothing could be learnt, or the file is there already."""
    with FindingsPrinter("ratc probe", form, taken=output is None) as printer:
        # An existing file may have answers to the questions.
        if output and (problem := new_file.there(output, force)):
            printer.print([problem])
            return 1
        if dry_run:
            would("ask", *questions(what))
            would("write", *([output] if output else []))
            return 0
        facts, said = probe(what, output, name, timeout)
        printer.print(said)
        if facts is None:
            return 1
        if not output:
            print(facts, end="")
            return 0
        if problem := new_file.write(output, facts, force):
            printer.print([problem])
            return 1
    count = facts.count("\n  - ") if "\nquestions:" in facts else 0
    left = f", {count} question{'s' if count > 1 else ''} left: see `questions` in it" if count else ""
    say(f"written: {output}{left}")
    return 0
