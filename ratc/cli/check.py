"""Find the compiled folders of a tree that differ from their inputs. Nothing is written.

Each folder's files are made again by the command in the head of its lock.yaml, in memory, and held against those there.
A spec that was never compiled is not a finding; a path is a mistake if you name it and it holds nothing compiled. RAT_*
variables are left out: the command of a lock has all values that lay over the spec.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ratc import consumers
from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.compiled import find
from ratc.console import say
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.sweep import without_repeats
from ratc.targets.artifact import Artifact
from ratc.units import counted
from ratc.workflow import findings
from ratc.workflow.check import checked
from ratc.workflow.inputs import Known


@declare(
    __doc__,
    [
        Argument(
            "paths",
            "PATH",
            "folders in which compiled folders are searched (default: this folder)",
            type=PATH,
            nargs=-1,
        ),
        options.form(),
        options.trust(),
        options.verify(),
        options.flag("--strict", "treat warnings as errors"),
        options.flag("--this-machine", "if a spec names no hardware, take the hardware of this machine"),
    ],
    {
        "ratc check": "check every compiled folder below this folder",
        "ratc check specs --format github": "in a pull request",
    },
)
def command(paths: tuple[str, ...], form: str, verify: bool, strict: bool, this_machine: bool) -> int:
    """Exit status 1 if a folder differs, 2 if a path that is named is not there or holds no compiled
    folder, or, with ``--strict``, if a folder below cannot be listed.
    """
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        say(f"ratc check: there is no `{missing[0]}`")
        return 2
    # This folder, the default, may hold none yet: CI runs from the first day on.
    empty = [path for path in paths if not (os.path.samefile(path, ".") or any(find.compiled((path,))))]
    if empty:
        say(f"ratc check: `{empty[0]}` holds no compiled folder: `ratc compile` makes them")
        return 2
    found: list[Diagnostic] = []
    folders = differ = 0
    known: Known = {}
    made: list[tuple[str, Artifact, int]] = []
    unlisted: list[OSError] = []
    for folder in find.compiled(paths or (".",), unlisted.append):
        said = checked(folder, this_machine, known, made)
        if strict:
            said = [replace(item, severity=Severity.ERROR) for item in said]
        found += said
        folders, differ = folders + 1, differ + has_errors(said)
    for error in unlisted:
        say(f"ratc check: cannot look into `{error.filename}`: {error.strerror}")
    if verify:
        found += consumers.verify(made)
    failed = findings.show(without_repeats(found), "ratc check", form)
    say(f"{counted(folders, 'compiled spec')} checked: {differ or 'none'} differ{'s' if differ < 2 else ''}")
    return 1 if failed else 2 if unlisted and strict else 0
