"""Say which folders' own code ratc may run, or list one more: `ratc trust FOLDER`.

A spec may name code of its own, `package.module:callable`. ratc runs it to predict memory, to measure and to train, but
only for a folder that you trust, with all below it; for one command `--trust` or RATC_TRUST=1 trusts everything.
Built-in models need no trust.
"""

from __future__ import annotations

import os
import sys

from ratc.cli import options
from ratc.cli.command import PATH, Argument, declare
from ratc.console import would
from ratc.markup import visible
from ratc.own_code import trust


@declare(
    __doc__,
    [
        Argument(
            "folder",
            "FOLDER",
            "a folder to trust (default: show the list of trusted folders)",
            type=PATH,
            required=False,
        ),
        options.flag("--remove", "remove the folder from the list"),
        options.dry_run("name the folder that would be added or removed, and write nothing"),
    ],
    {
        "ratc trust": "show the list, and whether this folder is on it",
        "ratc trust ~/project": "trust a folder and everything below it",
        "ratc trust ~/project --remove": "no more",
    },
)
def command(folder: str | None, remove: bool, dry_run: bool) -> int:
    """Exit status 1 if a folder cannot be listed, or is not on the list that it is to be taken off."""
    if folder is None:
        if remove:
            print("ratc trust: --remove needs a folder", file=sys.stderr)
            return 2
        return _show()
    try:
        if dry_run and not remove:
            would("trust", trust.entry_of(folder))
            return 0
        if dry_run and trust.is_entry(folder):
            would("trust no more", os.path.realpath(folder))
            return 0
        if not remove:
            print(f"trusted: {visible(trust.add(folder))}")
            return 0
        removed = trust.remove(folder)
    except trust.Untrusted as error:
        print(visible(f"ratc trust: {error}"), file=sys.stderr)
        return 1
    except OSError as error:
        print(visible(f"ratc trust: cannot write {trust.path()}: {error.strerror}"), file=sys.stderr)
        return 1
    if removed is None:
        print(f"ratc trust: {visible(folder)} is not on the list of {trust.path()}", file=sys.stderr)
        return 1
    print(f"no longer trusted: {visible(removed)}")
    if trust.is_listed(removed):
        print("ratc trust: it is still trusted, because a folder above it is on the list", file=sys.stderr)
    return 0


def _show() -> int:
    folders = trust.listed()
    print("".join(f"{visible(folder)}\n" for folder in folders), end="")
    here = "trusted" if trust.is_listed(".") else "not trusted"
    print(f"{len(folders)} trusted; this folder is {here}; the list: {trust.path()}", file=sys.stderr)
    return 0
