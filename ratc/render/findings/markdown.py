"""Findings as Markdown, for a comment on a pull request or a job's summary."""

from __future__ import annotations

from collections.abc import Sequence

from ratc.diagnostics import Diagnostic, Severity
from ratc.markup import code, escape
from ratc.secrets.redact import redact
from ratc.units import counted

#: Platforms cut long comments off; this many stay well below that.
_MOST = 100
_MARKS = {Severity.ERROR: "🔴", Severity.WARNING: "🟡", Severity.NOTE: "🔵"}


def document(items: Sequence[Diagnostic], command: str) -> str:
    """A heading with the counts, and a list."""
    errors, notes = (sum(item.severity is kind for item in items) for kind in (Severity.ERROR, Severity.NOTE))
    head = f"### `{command}`: {counted(errors, 'error')}, {counted(len(items) - errors - notes, 'warning')}"
    head += f", {counted(notes, 'note')}\n" if notes else "\n"
    more = f"\n… and {len(items) - _MOST} more.\n" if len(items) > _MOST else ""
    return head + "".join(f"\n{_entry(item)}" for item in items[:_MOST]) + more


def _entry(item: Diagnostic) -> str:
    place = f" {code(redact(item.span.place))}" if item.span else ""
    mark = _MARKS[item.severity]
    lines = [f"- {mark} **{item.code}**{place}: {escape(redact(item.message))}\n"]
    lines += [f"  - note: {escape(redact(note))}\n" for note in item.notes if note]
    lines += [f"  - help: {escape(redact(text))}\n" for text in item.helps if text]
    return "".join(lines)
