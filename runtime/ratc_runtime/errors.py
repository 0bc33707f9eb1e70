"""Findings of the runtime: the messages for a run that cannot start or continue (codes R5xx)."""

from __future__ import annotations

import re
import sys


class RuntimeFinding(Exception):
    """A refusal with its code, printed instead of a traceback.

    `everywhere` is true if every rank has the same finding, so that only rank 0 prints it.
    """

    def __init__(self, code: str, message: str, note: str = "", help: str = "", everywhere: bool = True) -> None:
        # All arguments go to Exception so that the finding survives pickling between processes.
        super().__init__(code, message, note, help, everywhere)
        self.code = code
        self.message = message
        self.note = note
        self.help = help
        self.everywhere = everywhere

    def __str__(self) -> str:
        return self.render()

    def render(self) -> str:
        """Return the printed form of the finding: `error[R501]: ...`, then its note and help."""
        lines = [f"error[{self.code}]: {self.message}"]
        if self.note:
            lines.append("  note: " + self.note.replace("\n", "\n        "))
        if self.help:
            lines.append("  help: " + self.help.replace("\n", "\n        "))
        return visible("\n".join(lines))


#: Commands of CI systems that stand anywhere in a line: `##[group]` of GitHub's runner, `##vso[…]` of Azure's.
_RUNNER = re.compile(r"##(?=(?:vso)?\[)", re.I)
#: Those of GitHub's runner that begin a line.
_COMMAND = re.compile(r"^(\s*):(?=:)", re.M)


def visible(text: str) -> str:
    """Return the text without commands to a terminal or a CI system, which names of files may hold.

    Control characters and changes of direction are escaped. One character of each CI command becomes full-width.
    """
    text = "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
    text = _COMMAND.sub("\\1\N{FULLWIDTH COLON}", text)
    return _RUNNER.sub("#\N{FULLWIDTH NUMBER SIGN}", text)


def say(text: str) -> None:
    """Print lines on stdout that may hold names of files, classes or models."""
    print(visible(text), flush=True)


def warn_of(finding: RuntimeFinding) -> None:
    """Print a finding as one warning line with its code."""
    warn(f"[{finding.code}] {finding.message}")


def warn(message: str) -> None:
    """Print one warning line on stderr."""
    print(visible(f"warning: {message}"), file=sys.stderr, flush=True)
