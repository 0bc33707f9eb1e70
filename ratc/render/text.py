"""Diagnostics as text for people, with the offending words underlined; colour only if it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.markup import visible
from ratc.secrets import excerpt
from ratc.secrets.redact import redact
from ratc.units import counted

_COLOURS = {
    "error": "\x1b[1;31m",
    "warning": "\x1b[1;33m",
    "note": "\x1b[1;36m",
    "help": "\x1b[1;32m",
    "gutter": "\x1b[34m",
}
_RESET = "\x1b[0m"
_WIDTH = 160
#: The most findings shown; the counts at the end are of all.
_MOST = 50


def diagnostics(items: Iterable[Diagnostic], colour: bool = False) -> str:
    """All of them, a blank line between two, with a line of counts at the end."""
    items = list(items)
    blocks = [diagnostic(item, colour) for item in items[:_MOST]]
    if len(items) > _MOST:
        blocks.append(f"… and {len(items) - _MOST} more")
    errors = sum(item.severity is Severity.ERROR for item in items)
    notes = sum(item.severity is Severity.NOTE for item in items)
    counts = [_count(errors, "error"), _count(len(items) - errors - notes, "warning"), _count(notes, "note")]
    summary = ", ".join(count for count in counts if count)
    return "\n\n".join([*blocks, summary]) + "\n" if blocks else ""


def diagnostic(item: Diagnostic, colour: bool = False) -> str:
    """One diagnostic, without a line end after it."""

    def paint(kind: str, text: str) -> str:
        return f"{_COLOURS[kind]}{text}{_RESET}" if colour else text

    kind = item.severity.value
    lines = [f"{paint(kind, f'{kind}[{item.code}]')}: {visible(redact(item.message))}"]
    if item.span:
        lines += _excerpt(item.span, paint)
    lines += [f"{paint('note', 'note')}: {visible(redact(note))}" for note in item.notes if note]
    lines += [f"{paint('help', 'help')}: {visible(redact(text))}" for text in item.helps if text]
    return "\n".join(lines)


def _excerpt(span: Span, paint: Callable[[str, str], str]) -> list[str]:
    text = excerpt.line(span.source, span.line)
    number = str(span.line)
    pad = " " * len(number)
    column = span.column
    end = span.end_column if span.end_line == span.line else len(text) + 1
    if len(text) > _WIDTH:  # keep the underlined part of a very long line in view
        cut = max(0, column - 1 - _WIDTH // 2)
        text = text[cut : cut + _WIDTH]
        column, end = column - cut, end - cut
    text = visible(text)
    marked = text[column - 1 : max(column, min(end, len(text) + 1) - 1)]
    carets = "^" * max(1, _cells(marked))
    return [
        paint("gutter", f"{pad} --> ") + visible(span.place),
        paint("gutter", f"{pad} |"),
        paint("gutter", f"{number} | ") + text,
        paint("gutter", f"{pad} | ") + " " * _cells(text[: column - 1]) + paint("error", carets),
    ]


def _cells(text: str) -> int:
    """Return the width of a text in terminal columns: East Asian characters and emoji two, combining marks none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def _count(number: int, word: str) -> str:
    return counted(number, word) if number else ""
