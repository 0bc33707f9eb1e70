"""Show the differences between two specs, compiled folders or locks, and their consequences.

Either side may be of a git revision: `ratc diff HEAD~1:specs/a.yaml specs/a.yaml`; `main:` is the other side's file in
`main`. One side alone is compared with HEAD. RAT_* variables are ignored. Exit status 0 same, 1 different, 2 trouble.
To make `git diff` use it: docs/guides/diff.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import click

from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.comparison.compare import compare, without
from ratc.compiled import git_revisions
from ratc.console import say
from ratc.diagnostics import Diagnostic, has_errors
from ratc.spec.keys import Effect
from ratc.workflow import diff_inputs, findings
from ratc.workflow.changes import rendered
from ratc.workflow.diff_inputs import Asked

#: Forms of the comparison itself; in the others of `findings.FORMS` each change is a finding.
FORMATS = ("text", "json", "markdown")


def _of_a_side(name: str, metavar: str, what: str, **given: Any) -> list[click.Parameter]:
    texts = {name: f"{what}, for both sides", f"old-{name}": "for the first side only"}
    texts[f"new-{name}"] = "for the second side only"
    return [click.Option([f"--{word}"], metavar=metavar, help=text, **given) for word, text in texts.items()]


@declare(
    __doc__,
    [
        Argument(
            "sides",
            "SIDE",
            "a spec, a compiled folder, a lock, or REV:path for one in a git revision",
            type=PATH,
            nargs=-1,
            required=False,
        ),
        options.config("SIDE"),
        *_of_a_side("target", "T", "local, slurm or lsf"),
        *_of_a_side("facts", "FILE", "hardware facts, instead of this machine's", type=PATH),
        options.form("text (default), json or markdown; github and sarif show each change beside its line"),
        click.Option(
            ["--ignore"],
            multiple=True,
            type=click.Choice([Effect.PLACEMENT.value, Effect.COSMETIC.value, "cosmetics"]),
            help="leave out changes with no other effect than this; may be given twice",
        ),
        options.trust(),
        options.flag("--git-driver", "read the arguments that git passes to a diff driver"),
    ],
    {
        "ratc diff config.yaml": "show the changes since the last commit",
        "ratc diff a.yaml b.yaml --ignore cosmetics": "compare two specs, without cosmetic changes",
        "ratc diff main:config.yaml config.yaml --format markdown": "write the changes for a pull request",
    },
)
def command(
    sides: tuple[str, ...],
    target: str | None,
    old_target: str | None,
    new_target: str | None,
    facts: str | None,
    old_facts: str | None,
    new_facts: str | None,
    form: str,
    ignore: tuple[str, ...],
    git_driver: bool,
) -> int:
    """Exit status 0 same, 1 different, 2 trouble; as git's driver always 0."""
    if git_driver:
        from ratc.workflow import diff_driver

        return diff_driver.run(
            sides, (old_target or target, old_facts or facts), (new_target or target, new_facts or facts)
        )
    if not 1 <= len(sides) <= 2:
        print("ratc diff: name two sides, or one that is compared with HEAD; see `ratc diff --help`", file=sys.stderr)
        return 2
    names = sides if len(sides) == 2 else _against_head(sides[0])
    if len([name for name in names if (parts := git_revisions.split(name)) and not parts[1]]) == 2:
        print("ratc diff: name the file on at least one side, as in `ratc diff main: spec.yaml`", file=sys.stderr)
        return 2
    old = Asked(names[0], old_target or target, old_facts or facts)
    new = Asked(names[1], new_target or target, new_facts or facts)
    with ExitStack() as stack:
        both, found = diff_inputs.pair(old, new, stack)
        if both is None:
            findings.show(_once(found), "ratc diff", form)
            return 2
        comparison = without(compare(*both), _ignored(ignore))
        if form in FORMATS:
            sys.stdout.write(rendered(comparison, form))
        else:
            # Imported here: one form is asked for.
            from ratc.render.changes.findings import findings as one_each

            findings.show(one_each(comparison), "ratc diff", form)
        if comparison.is_empty:
            print("ratc diff: nothing differs", file=sys.stderr)
            for remark in comparison.remarks if form == "text" else ():
                say(f"note: {remark}")
    return 0 if comparison.is_empty else 1


def _against_head(side: str) -> list[str]:
    """Return the sides for one argument: a file and its version in HEAD, or a revision and the file as it is."""
    parts = git_revisions.split(side)
    return [side, parts[1]] if parts else ["HEAD:", side]


def _ignored(names: Sequence[str]) -> list[Effect]:
    return [Effect(name.removesuffix("s") if name == "cosmetics" else name) for name in names]


def _once(found: tuple[Diagnostic, ...]) -> list[Diagnostic]:
    """Return the errors, or all findings if there are none, each once."""
    told = [item for item in found if has_errors((item,))] or list(found)
    return list(dict.fromkeys(told))
