"""Prints the findings of a command: text at once, any other form as one document at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from types import TracebackType

from ratc import resources
from ratc.console import say
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.render import text

#: How findings can be told; each but text is a file of `ratc.render.findings`.
FORMS = ("text", "json", "github", "sarif", "markdown")


class FindingsPrinter:
    """Collects the findings of one command. As a context manager it writes the document if the command ends well.

    If standard output is ``taken`` by the command's own output, the document goes to standard error.
    """

    def __init__(self, command: str, form: str = "text", taken: bool = False) -> None:
        self._command = command
        self._form = form
        self._taken = taken
        self._kept: list[Diagnostic] = []

    def print(self, found: Iterable[Diagnostic]) -> bool:
        """Print these findings, now or at the end. Returns whether any is an error."""
        found = list(found)
        if self._form == "text":
            return show(found, self._command)
        self._kept += found
        return has_errors(found)

    def __enter__(self) -> FindingsPrinter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self._form != "text":
            show(self._kept, self._command, self._form, self._taken)


#: Warnings about the plan that was made. Beside an error there is no plan, and they would only hide the error.
_ABOUT_A_PLAN = ("R305", "R320")


def show(diagnostics: Iterable[Diagnostic], command: str, form: str = "text", taken: bool = False) -> bool:
    """Print findings, errors first: text on standard error, any other form on standard output, even if there are none.

    If standard output is ``taken`` by the command's own output, any form goes to standard error. Returns whether any
    finding is an error.
    """
    items = sorted(diagnostics, key=lambda item: (item.severity is not Severity.ERROR, _position(item)))
    failed = any(item.severity is Severity.ERROR for item in items)
    if failed:
        items = [item for item in items if item.code not in _ABOUT_A_PLAN]
    if form != "text":
        (sys.stderr if taken else sys.stdout).write(_document(items, command, form))
        return failed
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    sys.stderr.write(text.diagnostics(items, colour))
    if failed:
        code = next(item.code for item in items if item.severity is Severity.ERROR)
        say(f"{command}: failed; `ratc explain {code}` says more")
    return failed


def _document(items: list[Diagnostic], command: str, form: str) -> str:
    module = import_module(f"ratc.render.findings.{form}")
    if form != "sarif":
        return str(module.document(items, command))
    pages = {code: resources.read("codes", f"{code}.md").decode() for code in {item.code for item in items}}
    return str(module.document(items, command, pages))


def _position(item: Diagnostic) -> tuple[str, int, int]:
    return (item.span.source.name, item.span.line, item.span.column) if item.span else ("", 0, 0)
