"""Findings of the runtime: what a person is told when training cannot start or go on (codes R5xx)."""

from __future__ import annotations

import sys


class RuntimeFinding(Exception):
    """A refusal with its code, to be shown instead of a traceback.

    `everywhere` is true if every rank comes to the same finding, so that only rank 0 prints it.
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
        """Return the finding as it is printed: `error[R501]: ...`, then its note and help."""
        lines = [f"error[{self.code}]: {self.message}"]
        if self.note:
            lines.append("  note: " + self.note.replace("\n", "\n        "))
        if self.help:
            lines.append("  help: " + self.help.replace("\n", "\n        "))
        return visible("\n".join(lines))


def visible(text: str) -> str:
    """The text with control characters and changes of direction spelled out: a name can hold any, a terminal obeys."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


def warn_of(finding: RuntimeFinding) -> None:
    """Print a finding that refuses nothing, as one warning line with its code."""
    warn(f"[{finding.code}] {finding.message}")


def warn(message: str) -> None:
    """Print one warning line on stderr."""
    print(visible(f"warning: {message}"), file=sys.stderr, flush=True)
