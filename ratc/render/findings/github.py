"""Findings as GitHub's workflow commands, which it shows beside the lines of a pull request.

Escapes as in `actions/toolkit`, packages/core/src/command.ts: `%`, CR and LF in data; `:` and `,` too in properties.
"""

from __future__ import annotations

from collections.abc import Sequence

from ratc.diagnostics import Diagnostic, Severity
from ratc.markup import workflow_data, workflow_property
from ratc.secrets.redact import redact

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def document(items: Sequence[Diagnostic], command: str) -> str:
    """One command a line; nothing if nothing was found."""
    return "".join(f"{_command(item, command)}\n" for item in items)


def _command(item: Diagnostic, command: str) -> str:
    properties = {"title": f"{item.code} ({command})"}
    if item.span and item.span.source.is_file:
        span = item.span
        properties |= {"file": span.source.name, "line": str(span.line), "endLine": str(span.end_line)}
        if span.line == span.end_line:  # GitHub takes columns within one line only
            properties |= {"col": str(span.column), "endColumn": str(span.end_column)}
    told = ",".join(f"{name}={workflow_property(value)}" for name, value in properties.items())
    words = [item.message, *(f"note: {note}" for note in item.notes if note)]
    words += [f"help: {text}" for text in item.helps if text]
    return f"::{_LEVELS[item.severity]} {told}::{workflow_data(*map(redact, words))}"
