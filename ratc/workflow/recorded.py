"""Parses the command that a compiled folder records, to compile the same again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace

from ratc.layers import SHORT_NAMES
from ratc.workflow import inputs
from ratc.workflow.request import CompileRequest


class Refused(Exception):
    """A recorded command that cannot be read; the text says why."""


def request(words: str, folder: str) -> CompileRequest:
    """Return the request of a recorded command, with paths relative to the shell's folder. Raises ``Refused``."""
    try:
        parts = shlex.split(words)
    except ValueError as error:
        raise Refused(str(error)) from None
    if parts[:2] != ["ratc", "compile"]:
        raise Refused("there is no line `# Again, from this folder: ratc compile …`")
    asked = _read(parts[2:], folder)
    if inputs.known_target(asked.target):
        raise Refused(f"there is no target `{asked.target}`")
    there = _followed(folder, asked.spec)
    return replace(
        asked,
        spec=os.path.normpath(os.path.join(there, asked.spec)),
        facts=os.path.normpath(os.path.join(there, asked.facts)) if asked.facts else None,
        variables={},
    )


def folder_of(words: str, folder: str) -> str:
    """Return ``folder``; or the folder that it links to, if only from there the command finds its spec."""
    try:
        return _followed(folder, _read(shlex.split(words)[2:], folder).spec)
    except (ValueError, Refused):
        return folder


def _followed(folder: str, spec: str) -> str:
    joined = os.path.join(folder, spec)
    if os.path.exists(os.path.normpath(joined)) or not os.path.exists(joined):
        return folder
    return os.path.relpath(os.path.realpath(folder))


#: Options that `ratc compile` records or accepts.
_FLAGS = ("--no-predict", "--debug", "--check", "--verify", "--trust")
_VALUES = ("--target", "--facts", "--set", "-o", "--output", "--format", *(f"--{name}" for name in SHORT_NAMES))


def _read(words: Sequence[str], folder: str) -> CompileRequest:
    """Return the request of the words of a compile command; ``folder`` is that of ``-o``. Raises ``Refused``."""
    specs: list[str] = []
    given: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not word.startswith("-"):
            specs.append(word)
        elif name in _FLAGS and not equals:
            given[name] = ["true"]
        elif name in _VALUES:
            following = value if equals else next(rest, None)
            if following is None:
                raise Refused(f"`{name}` has no value")
            given.setdefault(name, []).append(following)
        else:
            raise Refused(f"there is no option `{name}`")
    if len(specs) != 1:
        raise Refused("it names no spec" if not specs else f"it names {len(specs)} specs")
    short = {name: given[f"--{name}"][-1] for name in SHORT_NAMES if f"--{name}" in given}
    return CompileRequest(
        specs[0],
        given.get("--target", ["local"])[-1],
        given.get("--facts", [None])[-1],
        tuple(given.get("--set", ())),
        short,
        "--no-predict" not in given,
        folder if {"-o", "--output"} & given.keys() else None,
    )
