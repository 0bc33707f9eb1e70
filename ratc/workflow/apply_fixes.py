"""Applies certain fixes to the files that the user named, atomically per file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from ratc import files
from ratc.diagnostics import Diagnostic, Edit
from ratc.yaml import edit as fixes


def fix(
    names: Sequence[str], found: Iterable[Diagnostic], dry_run: bool = False
) -> tuple[list[str], tuple[Diagnostic, ...]]:
    """Apply the fixes of the findings to these files; returns their descriptions and the problems. Code: R403."""
    by_file: dict[str, list[tuple[Edit, str]]] = {}
    for item in found:
        for edit in item.fix.edits if item.fix and item.fix.is_certain else ():
            if edit.span.source.is_file and edit.span.source.name in names:
                assert item.fix
                by_file.setdefault(edit.span.source.name, []).append((edit, item.fix.description))
    told: list[str] = []
    problems: list[Diagnostic] = []
    for name, asked in by_file.items():
        try:
            told += _rewrite(name, asked, dry_run)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            problems.append(Diagnostic("R403", f"cannot fix `{name}`: {reason}", notes=("the file is unchanged",)))
    return told, tuple(problems)


def _rewrite(name: str, asked: list[tuple[Edit, str]], dry_run: bool) -> list[str]:
    path = os.path.realpath(name)  # a link stays a link
    with open(path, "rb") as file:
        text = file.read().decode("utf-8")
    fixed, done = fixes.apply(text, [edit for edit, _ in asked])
    if not done:
        return []
    if not os.access(path, os.W_OK):
        raise PermissionError(13, os.strerror(13))
    if not dry_run:
        files.clear(os.path.dirname(path) or ".")
        files.replace(path, fixed.encode("utf-8"), mode=stat.S_IMODE(os.stat(path).st_mode))
    words = dict(asked)
    return [f"{edit.span.place}: {words[edit]}" for edit in done]
