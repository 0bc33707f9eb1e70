"""Tells what a command finds in several steps: at once where people read it, as one document at the end otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from ratc.cli import inputs
from ratc.diagnostics import Diagnostic, has_errors


class Telling:
    """Takes the findings of one command. As a context manager it writes the document when the command has ended well.

    ``taken`` says that standard output is for what the command makes; the document then goes to standard error.
    """

    def __init__(self, command: str, form: str = "text", taken: bool = False) -> None:
        self._command = command
        self._form = form
        self._taken = taken
        self._kept: list[Diagnostic] = []

    def tell(self, found: Iterable[Diagnostic]) -> bool:
        """Tell of these, now or at the end. Returns whether any is an error."""
        found = list(found)
        if self._form == "text":
            return inputs.show(found, self._command)
        self._kept += found
        return has_errors(found)

    def __enter__(self) -> Telling:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self._form != "text":
            inputs.show(self._kept, self._command, self._form, self._taken)
