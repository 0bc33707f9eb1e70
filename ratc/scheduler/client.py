"""Finds the scheduler that this machine can submit to, and runs its commands with a time limit for each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ratc.diagnostics import Diagnostic
from ratc.scheduler import DIALECTS
from ratc.scheduler.dialect import Answer, Dialect


@dataclass(frozen=True, slots=True)
class Scheduler:
    """A scheduler that answers: its target's name, its dialect, and the cluster's own name."""

    target: str
    dialect: Dialect
    cluster: str


def ask(
    command: Sequence[str],
    timeout: float,
    folder: str | None = None,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Answer:
    """Run a command for at most ``timeout`` seconds, then kill it and its children. ``stdin`` is a file's path. Ctrl-C
    at the terminal does not reach the command.
    """
    name = command[0]
    try:
        with open(stdin or os.devnull, "rb") as source:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
    except OSError as error:
        return Answer(name, None, err=f"{name}: {error.strerror}")
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        out, err = _end(process)
        return Answer(name, None, out, f"{err.rstrip()}\n{name} gave no answer within {timeout:g} s".lstrip())
    except BaseException:
        _end(process)
        raise
    return Answer(name, process.returncode, out, err)


def _end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill the process and its children; returns their standard output and standard error."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def inside(environment: Mapping[str, str]) -> tuple[Dialect, str] | None:
    """Return the scheduler and the number of the job that this process belongs to."""
    for dialect in DIALECTS.values():
        if environment.get(dialect.inside):
            return dialect, environment[dialect.inside]
    return None


def detect(target: str | None, timeout: float) -> tuple[Scheduler | None, tuple[Diagnostic, ...]]:
    """The scheduler of this machine, or of ``target``, if its controller answers. Codes: R410, R413."""
    if target == "local":
        message = "the target `local` has no scheduler to submit to"
        return None, (Diagnostic("R410", message, helps=("`ratc train SPEC` compiles for this machine and runs it",)),)
    wanted = {target: DIALECTS[target]} if target else DIALECTS
    here = {name: dialect for name, dialect in wanted.items() if not _missing(dialect)}
    if not here:
        return None, (_nothing_here(target),)
    found, silent = [], []
    for name, dialect in here.items():
        answer = ask(dialect.cluster_command, timeout)
        cluster = dialect.cluster(answer)
        if cluster is None:
            silent.append(unanswered(dialect, answer))
        else:
            found.append(Scheduler(name, dialect, cluster))
    if len(found) > 1:
        both = " and ".join(scheduler.dialect.name for scheduler in found)
        helps = tuple(
            f"choose one: `--target {scheduler.target}` submits to {scheduler.dialect.name}" for scheduler in found
        )
        return None, (Diagnostic("R410", f"{both} both answer on this machine", helps=helps),)
    return (found[0], ()) if found else (None, tuple(silent))


def unanswered(dialect: Dialect, answer: Answer) -> Diagnostic:
    """A scheduler that is installed but does not answer. Code: R413."""
    message = f"{dialect.name} does not answer"
    return Diagnostic(
        "R413", message, notes=answer.words, helps=("try again later, or ask the cluster's administrators",)
    )


def _missing(dialect: Dialect) -> list[str]:
    return [program for program in dialect.programs if shutil.which(program) is None]


def _nothing_here(target: str | None) -> Diagnostic:
    dialects = [DIALECTS[target]] if target else list(DIALECTS.values())
    message = f"there is no {' and no '.join(dialect.name for dialect in dialects)} on this machine"
    notes = tuple(f"{dialect.name}: no `{_missing(dialect)[0]}` on PATH" for dialect in dialects)
    helps = (
        "submit from a login node of the cluster",
        f"`ratc compile SPEC --target {target or 'slurm'}` writes the files only",
        "`ratc train SPEC` compiles for this machine and runs it",
    )
    return Diagnostic("R410", message, notes=notes, helps=helps)
