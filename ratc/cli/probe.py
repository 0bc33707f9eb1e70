"""Write facts of the cluster, or of this machine, from what the scheduler or the driver says.

`ratc probe slurm` and `ratc probe lsf` write cluster facts on a login node, `ratc probe local` hardware facts for
`--facts`. Commands that are run only read. What they do not tell is left as questions, marked `# ?`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from ratc import compiler
from ratc.compiler import File
from ratc.probe.inventory import Inventory, text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc probe``."""
    parser.add_argument("what", choices=("slurm", "lsf", "local"), help="whom to ask")
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write; standard output where absent")
    parser.add_argument("--name", metavar="NAME", help="name of the cluster (default: the scheduler's)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="seconds for each command (default: 60)")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where nothing could be learnt, or the file is there already."""
    if args.output and os.path.lexists(args.output) and not args.force:
        # Somebody may have answered its questions.
        return _failed(f"`{args.output}` is there already", "`--force` writes over it")
    written = _local() if args.what == "local" else _cluster(args)
    if written is None:
        return 1
    if not args.output:
        print(written, end="")
        return 0
    try:
        os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
        with open(args.output, "w", encoding="utf-8") as file:
            file.write(written)
    except OSError as error:
        return _failed(f"cannot write `{args.output}`: {error.strerror}")
    questions = written.count("\n  - ") if "\nquestions:" in written else 0
    left = f", {questions} question{'s' if questions > 1 else ''} left: see `questions` in it" if questions else ""
    print(f"written: {args.output}{left}", file=sys.stderr)
    return 0


def _failed(message: str, *helps: str) -> int:
    print("\n".join([f"ratc probe: {message}", *(f"help: {line}" for line in helps)]), file=sys.stderr)
    return 1


def _local() -> str:
    from ratc.probe.local import machine
    from ratc.probe.local_facts import text as facts_text

    return facts_text(machine(os.environ))


def _cluster(args: argparse.Namespace) -> str | None:
    """The text of the cluster's facts; None, with the reason printed, where they cannot be learnt."""
    from ratc.probe import lsf, slurm
    from ratc.probe.site import site

    scheduler = slurm if args.what == "slurm" else lsf
    read: Callable[[Mapping[str, str]], Inventory | None] = scheduler.inventory
    answers = _answers(scheduler.COMMANDS, scheduler.NEEDED, args.timeout)
    if answers is None:
        return None
    found = read(answers)
    if found is None:
        asked = " and ".join(f"`{' '.join(scheduler.COMMANDS[key])}`" for key in scheduler.NEEDED)
        _failed(f"the answers of {asked} hold no nodes with their queues", "is this the scheduler's own command?")
        return None
    keys, questions = site(os.environ, found.site)
    found = replace(
        found, name=args.name or found.name, site={**found.site, **keys}, questions=(*found.questions, *questions)
    )
    written = text(found, f"ratc probe {args.what}")
    cluster, problems = compiler.read_cluster(File(args.output or "the facts", written.encode()))
    if cluster is None:
        from ratc.cli import inputs

        inputs.show(problems, "ratc probe")
        return None
    return written


def _answers(commands: Mapping[str, tuple[str, ...]], needed: tuple[str, ...], timeout: float) -> dict[str, str] | None:
    """What the commands print, by name. One that is not needed may fail; it is said."""
    from ratc.probe.scheduler import ask

    answers: dict[str, str] = {}
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
            _failed(problem, *(f"it said: {line}" for line in words[:3]), "run this on a login node of the cluster")
            return None
        print(f"ratc probe: {problem}; what it tells is left open", file=sys.stderr)
    return answers
