"""Decides which folders' own code may run: the user says so, never a spec.

Trusted is everything with ``--trust`` or ``RATC_TRUST=1``, and every folder in the trust file, with its subfolders.
The file is `$RATC_CONFIG/trusted`, else `ratc/trusted` under `$XDG_CONFIG_HOME` or `~/.config`: one folder a line.
``ratc trust`` edits it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from ratc import files
from ratc.markup import visible

#: If this variable is 1, everything is trusted.
VARIABLE = "RATC_TRUST"


class Untrusted(Exception):
    """A folder that cannot be listed; the text says why."""


@dataclass(slots=True)
class _Session:
    """The trust of one command: ``everything`` by its option, ``answers`` by a person at its terminal."""

    everything: bool = False
    asks: bool = False
    answers: dict[str, bool] = field(default_factory=dict)


_session = _Session()


def begin(everything: bool, asks: bool) -> None:
    """Start a command: set whether its options trust everything, and whether it may ask at a terminal."""
    global _session
    _session = _Session(everything, asks)


def allows(folder: str, name: str) -> bool:
    """Whether code of a spec in ``folder`` may be run. ``name`` names the code in the question; a command that may ask
    does so once for each folder, and adds trusted folders to the file.
    """
    if _session.everything or os.environ.get(VARIABLE) == "1" or is_listed(folder):
        return True
    place = os.path.realpath(folder)
    if place not in _session.answers:
        if not _session.asks or not sys.stdin.isatty() or not sys.stderr.isatty():
            return False
        _session.answers[place] = _ask(place, name)
    return _session.answers[place]


def _ask(place: str, name: str) -> bool:
    shown, named = visible(place), visible(name)
    print(
        f"ratc: the spec names Python code of your own: {named}. To continue, ratc must run this code on this machine.",
        file=sys.stderr,
    )
    print(f"ratc: trust {shown} and everything below it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        return False
    try:
        add(place)
    except (Untrusted, OSError) as error:
        print(f"ratc: trusted for this command only: {error}", file=sys.stderr)
    return True


def is_listed(folder: str) -> bool:
    """Whether the trust file lists a folder, or one above it."""
    place = os.path.realpath(folder)
    return any(place == one or place.startswith(one.rstrip(os.sep) + os.sep) for one in listed())


def listed() -> list[str]:
    """The folders of the trust file, in its order; none if it cannot be read."""
    try:
        with open(path(), encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n") for line in file]
    except OSError:
        return []
    return [line for line in lines if os.path.isabs(line)]


def add(folder: str) -> str:
    """List a folder; returns it as listed. Raises Untrusted for one that is not there, and OSError."""
    entry = entry_of(folder)
    if entry not in listed():
        _write([*listed(), entry])
    return entry


def entry_of(folder: str) -> str:
    """A folder as it would be listed. Raises Untrusted for one that is not there."""
    entry = os.path.realpath(folder)
    if not os.path.isdir(entry):
        raise Untrusted(f"there is no folder `{folder}`")
    if "\n" in entry or "\r" in entry:
        raise Untrusted("the name of the folder has a line break")
    return entry


def is_entry(folder: str) -> bool:
    """Whether this very folder is on the list, not one above it."""
    return os.path.realpath(folder) in listed()


def remove(folder: str) -> str | None:
    """Take a folder off the list; returns it, or None if the list does not have it. Raises OSError."""
    place, before = os.path.realpath(folder), listed()
    if place not in before:
        return None
    _write([one for one in before if one != place])
    return place


def path() -> str:
    """The trust file. It need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    base = base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(os.environ.get("RATC_CONFIG") or os.path.join(base, "ratc"), "trusted")


def _write(folders: list[str]) -> None:
    """Write the list atomically: beside its place, then renamed."""
    place = os.path.dirname(path())
    os.makedirs(place, mode=0o700, exist_ok=True)
    text = "".join(f"{folder}\n" for folder in folders)
    files.replace(path(), text.encode("utf-8", "surrogateescape"), mode=0o600)
