"""Say which folders' own code ratc may run, or list one more: `ratc trust FOLDER`.

A spec may name code of its own, `package.module:callable`. ratc runs it to predict memory, to measure and to train, but
only for a folder that you trust, with all below it; for one command `--trust` or RATC_TRUST=1 trusts everything.
Built-in models need no trust.
"""

from __future__ import annotations

import argparse
import sys

from ratc.markup import visible
from ratc.own_code import trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc trust``."""
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="a folder to trust; without one, the list is shown")
    parser.add_argument("--remove", action="store_true", help="trust the folder no more")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if a folder cannot be listed, or is not on the list that it is to be taken off."""
    if args.folder is None:
        if args.remove:
            print("ratc trust: --remove needs a folder", file=sys.stderr)
            return 2
        return _show()
    try:
        if not args.remove:
            print(f"trusted: {visible(trust.add(args.folder))}")
            return 0
        removed = trust.remove(args.folder)
    except (trust.Untrusted, OSError) as error:
        print(visible(f"ratc trust: {error}"), file=sys.stderr)
        return 1
    if removed is None:
        print(f"ratc trust: {visible(args.folder)} is not on the list of {trust.path()}", file=sys.stderr)
        return 1
    print(f"not trusted any more: {visible(removed)}")
    if trust.is_listed(removed):
        print("ratc trust: a folder above it is trusted still", file=sys.stderr)
    return 0


def _show() -> int:
    folders = trust.listed()
    print("".join(f"{visible(folder)}\n" for folder in folders), end="")
    here = "trusted" if trust.is_listed(".") else "not trusted"
    print(f"{len(folders)} trusted; this folder is {here}; the list: {trust.path()}", file=sys.stderr)
    return 0
