"""The trials that a study has proposed so far, in order: one line of JSON each, written before anything else is done.

A study that is continued proposes them again first, so that the search algorithm knows as much as before. A ledger of
another search space is put aside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ratc import files
from ratc.sweep import Point
from ratc.tuning import proposals
from ratc.tuning.points import Study

_FILE = "proposals.jsonl"
#: Bytes of the file that are read, at most.
_MOST = 64 << 20


@dataclass(slots=True)
class Ledger:
    """The proposed trials: by path the index of a choice, or a number."""

    path: str
    entries: list[dict[str, Any]]

    def add(self, values: dict[str, Any]) -> None:
        """Append the next trial, and flush it to disk."""
        self.entries.append(values)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def points(self, study: Study) -> Sequence[Point]:
        """Return all proposed trials as points."""
        return [proposals.point(number, study.space, values) for number, values in enumerate(self.entries, 1)]


def read(folder: str, study: Study) -> Ledger:
    """A study's ledger, empty if there is none yet; nothing is written."""
    path, head = os.path.join(folder, _FILE), _head(study)
    try:
        with files.open_regular(path) as file:
            lines = file.read(_MOST).decode("utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError):
        return Ledger(path, [])
    if not lines or lines[0].strip() != head:
        return Ledger(path, [])
    # The last line may be cut off: it was of a trial that was not begun.
    try:
        found = Ledger(path, [json.loads(line) for line in lines[1:] if line.endswith("\n")])
        found.points(study)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return Ledger(path, [])  # it was edited by hand
    return found


def begin(folder: str, study: Study) -> Ledger:
    """Write a study's ledger again as a whole, and return it. One of another search space is renamed to `.old`."""
    files.make_folders(folder)
    found = read(folder, study)
    # Written again as a whole, without an incomplete last line. A ledger of another space is renamed.
    if not found.entries and os.path.exists(found.path):
        os.replace(found.path, f"{found.path}.old")
    text = _head(study) + "\n" + "".join(json.dumps(values) + "\n" for values in found.entries)
    files.replace(found.path, text.encode())
    return found


def _head(study: Study) -> str:
    """Return the first line: a digest of the inputs of proposals, the search space and the seed."""
    space = repr([(entry.path, entry.text) for entry in study.space])
    return json.dumps({"search_space": sha256(f"{space} {study.seed}".encode()).hexdigest()})
