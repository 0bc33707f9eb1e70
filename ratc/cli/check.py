"""Say which compiled folders of a tree are not what their inputs give. Nothing is written.

Each folder's files are made again by the command in the head of its lock.yaml, in memory, and held against those there.
A spec that was never compiled is no finding. RAT_* variables are left out: a lock's command names all that lay over it.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from ratc import consumers
from ratc.compiled import find
from ratc.console import say
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.sweep import once
from ratc.targets.artifact import Artifact
from ratc.workflow import findings, options
from ratc.workflow.check import checked
from ratc.workflow.inputs import Known


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc check``."""
    parser.add_argument(
        "paths", nargs="*", default=["."], metavar="PATH", help="folders to look in (default: this one)"
    )
    options.add_format_argument(parser)
    options.add_trust_argument(parser)
    options.add_verify_argument(parser)
    parser.add_argument("--strict", action="store_true", help="warnings are errors, too")
    parser.add_argument(
        "--this-machine", action="store_true", help="where a spec leaves hardware open, take that of this machine"
    )


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where a folder differs, 2 where a path is not there."""
    missing = [path for path in args.paths if not os.path.exists(path)]
    if missing:
        say(f"ratc check: there is no `{missing[0]}`")
        return 2
    found: list[Diagnostic] = []
    folders = differ = 0
    known: Known = {}
    made: list[tuple[str, Artifact, int]] = []
    for folder in find.compiled(args.paths):
        said = checked(folder, args.this_machine, known, made)
        if args.strict:
            said = [replace(item, severity=Severity.ERROR) for item in said]
        found += said
        folders, differ = folders + 1, differ + has_errors(said)
    if args.verify:
        found += consumers.verify(made)
    failed = findings.show(once(found), "ratc check", args.format)
    many = f"{folders} compiled spec{'' if folders == 1 else 's'} checked"
    say(f"{many}: {differ or 'none'} differ{'s' if differ < 2 else ''}")
    return 1 if failed else 0
