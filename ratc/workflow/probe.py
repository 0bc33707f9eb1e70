"""Probes the facts of a cluster or of this machine, from the scheduler or the driver."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace

from ratc import compiler
from ratc.compiler import File
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.probe.inventory import Inventory, text


def questions(what: str) -> list[str]:
    """Return the sources of the facts: the commands of a scheduler, or this machine's driver."""
    from ratc.probe import lsf, slurm

    if what == "local":
        return ["the driver of this machine"]
    return [" ".join(words) for words in (slurm if what == "slurm" else lsf).COMMANDS.values()]


def probe(what: str, output: str | None, name: str | None, timeout: float) -> tuple[str | None, tuple[Diagnostic, ...]]:
    """Return the text of the facts of a cluster, or of this machine (`local`), and diagnostics; None if probing fails.

    ``output`` is the file's name in diagnostics, ``timeout`` in seconds for each command. Code: R435.
    """
    if what == "local":
        from ratc.probe.local import machine
        from ratc.probe.local_facts import text as facts_text

        return facts_text(machine(os.environ)), ()
    from ratc.probe import lsf, slurm
    from ratc.probe.site import site

    scheduler = slurm if what == "slurm" else lsf
    read: Callable[[Mapping[str, str]], Inventory | None] = scheduler.inventory
    answers, problems = _outputs(scheduler.COMMANDS, scheduler.NEEDED, timeout)
    if has_errors(problems):
        return None, tuple(problems)
    found = read(answers)
    if found is None:
        asked = " and ".join(f"`{' '.join(scheduler.COMMANDS[key])}`" for key in scheduler.NEEDED)
        message, helps = f"the answers of {asked} show no nodes with their queues", ("is it the scheduler's command?",)
        return None, (*problems, Diagnostic("R435", message, helps=helps))
    keys, questions = site(os.environ, found.site)
    found = replace(
        found, name=name or found.name, site={**found.site, **keys}, questions=(*found.questions, *questions)
    )
    written = text(found, f"ratc probe {what}")
    cluster, said = compiler.read_cluster(File(output or "the facts", written.encode()))
    return (None, (*problems, *said)) if cluster is None else (written, tuple(problems))


def _outputs(
    commands: Mapping[str, tuple[str, ...]], needed: tuple[str, ...], timeout: float
) -> tuple[dict[str, str], list[Diagnostic]]:
    """Return the output of the commands by name. Failure of one that is not needed is a warning. Code: R435."""
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
        message = f"{problem}; the values from it are left open"
        problems.append(Diagnostic("R435", message, severity=Severity.WARNING))
    return answers, problems
