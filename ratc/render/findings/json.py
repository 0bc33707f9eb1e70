"""Findings as JSON. docs/reference/formats.md describes it; ``version`` counts up when it changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ratc import markup
from ratc.diagnostics import Diagnostic, Span
from ratc.secrets.redact import redact

VERSION = 1


def document(items: Sequence[Diagnostic], command: str) -> str:
    """Return all findings in one object; ``file`` and its place are null for a finding without a file."""
    tree = {"version": VERSION, "command": command, "findings": [_finding(item) for item in items]}
    return markup.json(tree)


def _finding(item: Diagnostic) -> dict[str, Any]:
    return {
        "code": item.code,
        "severity": item.severity.value,
        "message": redact(item.message),
        "notes": [redact(note) for note in item.notes if note],
        "helps": [redact(text) for text in item.helps if text],
        "source": item.span.source.name if item.span else None,
        **_place(item.span if item.span and item.span.source.is_file else None),
        "fixable": item.fix is not None and item.fix.is_certain,
    }


def _place(span: Span | None) -> dict[str, Any]:
    if span is None:
        return dict.fromkeys(("file", "line", "column", "end_line", "end_column"))
    return {
        "file": span.source.name,
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
    }
