"""Write facts of the cluster, or of this machine, as the scheduler or the driver reports them.

`ratc probe slurm` and `ratc probe lsf` write cluster facts on a login node, `ratc probe local` hardware facts for
`--facts`. Its commands only read. Values that they do not report are left as questions, marked `# ?`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace

import click

from ratc import compiler
from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.compiler import File
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, Severity
from ratc.probe.inventory import Inventory, text
from ratc.workflow.findings import Telling


@declare(
    __doc__,
    [
        Argument("what", "slurm|lsf|local", "whom to ask", type=click.Choice(["slurm", "lsf", "local"])),
        click.Option(
            ["-o", "--output"], metavar="FILE", type=PATH, help="the file to write; standard output if absent"
        ),
        click.Option(["--name"], metavar="NAME", help="name of the cluster (default: the scheduler's)"),
        click.Option(
            ["--timeout"], type=float, default=60.0, metavar="S", help="seconds for each command (default: 60)"
        ),
        options.flag("--force", "write over a file that is there"),
        options.dry_run("show the questions and the file, and do nothing"),
        options.form(),
    ],
    {
        "ratc probe slurm -o clusters/ours.yaml": "facts of a cluster, on its login node",
        "ratc probe local -o facts.yaml": "facts of this machine, for `--facts`",
    },
)
def command(
    what: str, output: str | None, name: str | None, timeout: float, force: bool, form: str, dry_run: bool
) -> int:
    """Exit status 1 if nothing could be learnt, or the file is there already."""
    with Telling("ratc probe", form, taken=output is None) as telling:
        return _run(what, output, name, timeout, force, dry_run, telling)


def _run(
    what: str, output: str | None, name: str | None, timeout: float, force: bool, dry_run: bool, telling: Telling
) -> int:
    """Codes: R403, R435."""
    if output and os.path.lexists(output) and not force:
        # Somebody may have answered its questions.
        message = f"cannot write `{output}`: it is there already"
        telling.tell([Diagnostic("R403", message, helps=("`--force` writes over it",))])
        return 1
    if dry_run:
        would("ask", *_questions(what))
        would("write", *([output] if output else []))
        return 0
    written = _local() if what == "local" else _cluster(what, output, name, timeout, telling)
    if written is None:
        return 1
    if not output:
        print(written, end="")
        return 0
    try:
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
        with open(output, "w", encoding="utf-8") as file:
            file.write(written)
    except OSError as error:
        telling.tell([Diagnostic("R403", f"cannot write `{output}`: {error.strerror}")])
        return 1
    questions = written.count("\n  - ") if "\nquestions:" in written else 0
    left = f", {questions} question{'s' if questions > 1 else ''} left: see `questions` in it" if questions else ""
    say(f"written: {output}{left}")
    return 0


def _questions(what: str) -> list[str]:
    """What is asked: the commands of a scheduler, or this machine's driver."""
    from ratc.probe import lsf, slurm

    if what == "local":
        return ["the driver of this machine"]
    return [" ".join(words) for words in (slurm if what == "slurm" else lsf).COMMANDS.values()]


def _local() -> str:
    from ratc.probe.local import machine
    from ratc.probe.local_facts import text as facts_text

    return facts_text(machine(os.environ))


def _cluster(what: str, output: str | None, name: str | None, timeout: float, telling: Telling) -> str | None:
    """The text of the cluster's facts; None, with the reason told, where they cannot be learnt. Code: R435."""
    from ratc.probe import lsf, slurm
    from ratc.probe.site import site

    scheduler = slurm if what == "slurm" else lsf
    read: Callable[[Mapping[str, str]], Inventory | None] = scheduler.inventory
    answers, problems = _answers(scheduler.COMMANDS, scheduler.NEEDED, timeout)
    if telling.tell(problems):
        return None
    found = read(answers)
    if found is None:
        asked = " and ".join(f"`{' '.join(scheduler.COMMANDS[key])}`" for key in scheduler.NEEDED)
        message, helps = f"the answers of {asked} hold no nodes with their queues", ("is it the scheduler's own?",)
        telling.tell([Diagnostic("R435", message, helps=helps)])
        return None
    keys, questions = site(os.environ, found.site)
    found = replace(
        found, name=name or found.name, site={**found.site, **keys}, questions=(*found.questions, *questions)
    )
    written = text(found, f"ratc probe {what}")
    cluster, said = compiler.read_cluster(File(output or "the facts", written.encode()))
    if cluster is None:
        telling.tell(said)
        return None
    return written


def _answers(
    commands: Mapping[str, tuple[str, ...]], needed: tuple[str, ...], timeout: float
) -> tuple[dict[str, str], list[Diagnostic]]:
    """What the commands print, by name. One that is not needed may fail; it is a warning. Code: R435."""
    from ratc.scheduler.client import ask

    answers: dict[str, str] = {}
    problems: list[Diagnostic] = []
    for name, command in commands.items():
        shown = " ".join(command)
        if shutil.which(command[0]) is None:
            problem = f"there is no `{command[0]}` on PATH"
            words: tuple[str, ...] = ()
        else:
            answer = ask(command, timeout, environment={**os.environ, "LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"})
            if answer.status == 0:
                answers[name] = answer.out
                continue
            problem = f"`{shown}` " + (f"gave {answer.status}" if answer.status is not None else "did not end")
            words = answer.words
        if name in needed:
            notes = tuple(f"it said: {line}" for line in words[:3])
            helps = ("run this on a login node of the cluster",)
            return answers, [*problems, Diagnostic("R435", problem, None, notes, helps)]
        message = f"{problem}; what it tells is left open"
        problems.append(Diagnostic("R435", message, severity=Severity.WARNING))
    return answers, problems
