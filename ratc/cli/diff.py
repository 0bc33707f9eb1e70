"""Say what differs between two specs, compiled folders or locks, and with what consequence.

Either side may be of a git revision: `ratc diff HEAD~1:specs/a.yaml specs/a.yaml`; `main:` is the other side's file in
`main`. With one side alone, it is held against HEAD. RAT_* variables are left out. Exit status 0 same, 1 different,
2 trouble. To make `git diff` use it: docs/guides/diff.md.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

from ratc.comparison.compare import compare, without
from ratc.compiled import git_revisions
from ratc.diagnostics import Diagnostic, has_errors
from ratc.spec.keys import Effect
from ratc.workflow import diff_inputs, findings, options
from ratc.workflow.changes import rendered
from ratc.workflow.diff_inputs import Asked

#: Forms of the comparison itself; in the others of `options.FORMS` each change is a finding.
FORMATS = ("text", "json", "markdown")
_DRIVER = "--git-driver"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc diff``."""
    parser.add_argument(
        "sides", nargs="*", metavar="SIDE", help="a spec, a compiled folder, a lock, or REV:path of one"
    )
    for name, what in (("target", "local, slurm or lsf"), ("facts", "hardware facts, instead of this machine's")):
        metavar = "T" if name == "target" else "FILE"
        parser.add_argument(f"--{name}", metavar=metavar, help=f"{what}, for both sides")
        parser.add_argument(f"--old-{name}", metavar=metavar, help="for the first side alone")
        parser.add_argument(f"--new-{name}", metavar=metavar, help="for the second side alone")
    parser.add_argument(
        "--format",
        choices=options.FORMS,
        default="text",
        help="text (default), json, markdown; or github or sarif, which show each change beside its line",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        choices=[Effect.PLACEMENT.value, Effect.COSMETIC.value, "cosmetics"],
        help="leave out changes that do no more than this; may be given twice",
    )
    options.add_trust_argument(parser)
    parser.add_argument(_DRIVER, action="store_true", help="take the arguments that git gives to a diff driver")


def run(args: argparse.Namespace) -> int:
    """Exit status 0 same, 1 different, 2 trouble; as git's driver always 0."""
    if args.git_driver:
        from ratc.cli import diff_driver

        return diff_driver.run(args)
    if not 1 <= len(args.sides) <= 2:
        print("ratc diff: name one side, which is held against HEAD, or two; see `ratc diff --help`", file=sys.stderr)
        return 2
    names = args.sides if len(args.sides) == 2 else _against_head(args.sides[0])
    if len([name for name in names if (parts := git_revisions.split(name)) and not parts[1]]) == 2:
        print("ratc diff: name the file on one side at least, as in `ratc diff main: spec.yaml`", file=sys.stderr)
        return 2
    old = Asked(names[0], args.old_target or args.target, args.old_facts or args.facts)
    new = Asked(names[1], args.new_target or args.target, args.new_facts or args.facts)
    with ExitStack() as stack:
        both, found = diff_inputs.pair(old, new, stack)
        if both is None:
            findings.show(_once(found), "ratc diff", args.format)
            return 2
        comparison = without(compare(*both), _ignored(args))
        if args.format in FORMATS:
            sys.stdout.write(rendered(comparison, args.format))
        else:
            # Imported here: one form is asked for.
            from ratc.render.changes.findings import findings as one_each

            findings.show(one_each(comparison), "ratc diff", args.format)
        if comparison.is_empty:
            print("ratc diff: nothing differs", file=sys.stderr)
            for remark in comparison.remarks if args.format == "text" else ():
                print(f"note: {remark}", file=sys.stderr)
    return 0 if comparison.is_empty else 1


def _against_head(side: str) -> list[str]:
    """A file against its last commit; a revision against the file as it is."""
    parts = git_revisions.split(side)
    return [side, parts[1]] if parts else ["HEAD:", side]


def _ignored(args: argparse.Namespace) -> list[Effect]:
    return [Effect(name.removesuffix("s") if name == "cosmetics" else name) for name in args.ignore]


def _once(found: tuple[Diagnostic, ...]) -> list[Diagnostic]:
    """What stops it, or all that was found; what both sides say, once."""
    told = [item for item in found if has_errors((item,))] or list(found)
    return list(dict.fromkeys(told))
