"""The driver `ratc diff --git-driver` that `git diff` calls: compares two versions of one file by their meaning.

git stops if a driver fails, so the exit status is 0 in any case, and a difference is printed.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeAlias

from ratc.comparison.compare import compare
from ratc.console import say
from ratc.markup import visible
from ratc.secrets.excerpt import whole
from ratc.workflow import diff_inputs
from ratc.workflow.changes import rendered
from ratc.workflow.diff_inputs import Asked

#: A target and a file of hardware facts, or None for the defaults.
Side: TypeAlias = tuple[str | None, str | None]


def run(words: Sequence[str], old_side: Side, new_side: Side) -> int:
    """Exit status 0; 2 if these are not git's arguments."""
    if len(words) == 1:
        say(f"ratc diff: {words[0]} is not merged", sys.stdout)
        return 0
    if len(words) not in (7, 9):
        print("ratc diff: git passes seven arguments to a diff driver; see docs/guides/diff.md", file=sys.stderr)
        return 2
    path, old, new = words[0], _read(words[1]), _read(words[4])
    say(f"diff --ratc a/{path} b/{words[7] if len(words) == 9 else path}", sys.stdout)
    sys.stdout.write(_differences(path, words[7] if len(words) == 9 else path, old, new, old_side, new_side))
    return 0


def _differences(path: str, later: str, old: bytes | None, new: bytes | None, old_side: Side, new_side: Side) -> str:
    """Return the differences by meaning if both versions can be read as a spec or a lock; else by lines."""
    if old is not None and new is not None:
        before = Asked(path, *old_side, old)
        after = Asked(later, *new_side, new)
        with ExitStack() as stack:
            both, _ = diff_inputs.pair(before, after, stack)
        if both is not None:
            told = rendered(compare(*both), "text")
            return told or "no value differs: only comments, order or layout\n"
    return _by_lines(path, later, old, new)


def _by_lines(path: str, later: str, old: bytes | None, new: bytes | None) -> str:
    names = ("/dev/null" if old is None else f"a/{path}", "/dev/null" if new is None else f"b/{later}")
    texts = [(data or b"").decode("utf-8", errors="replace") for data in (old, new)]
    before, after = (text.split("\n") for text in texts)
    starred = {
        line: told for text in texts for line, told in zip(text.split("\n"), whole(text).split("\n"), strict=True)
    }
    changes = difflib.unified_diff(before, after, *names, lineterm="")
    return "".join(f"{visible(line[:1] + starred.get(line[1:], line[1:]))}\n" for line in changes)


def _read(path: str) -> bytes | None:
    """The bytes of a version; None if there is none."""
    if path == os.devnull:
        return None
    with open(path, "rb") as file:
        return file.read()
