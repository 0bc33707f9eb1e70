"""Applies fixes to the text of a file: what is not fixed stays as it was, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ratc.diagnostics import Edit, Span

#: What the parser counts as the end of a line.
_LINE_END = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_BOM = "\ufeff"


def apply(text: str, edits: Sequence[Edit]) -> tuple[str, list[Edit]]:
    """The text with the edits made, and the edits that were. Of two that overlap the first counts; one whose words are
    not there any more, or that is longer than a line, is left out. A byte order mark is kept; spans do not count it.
    """
    bom, body = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    starts = [0, *(match.end() for match in _LINE_END.finditer(body))]
    done: list[Edit] = []
    parts: list[str] = []
    at = 0
    for edit in sorted(edits, key=lambda edit: (edit.span.line, edit.span.column)):
        if edit.span.line > len(starts) or edit.span.end_line != edit.span.line:
            continue
        start, end = (starts[edit.span.line - 1] + column - 1 for column in (edit.span.column, edit.span.end_column))
        if start < at or body[start:end] != _words(edit.span):
            continue
        parts += [body[at:start], edit.text]
        at = end
        done.append(edit)
    return bom + "".join([*parts, body[at:]]), done


def _words(span: Span) -> str | None:
    """What stood there when the finding was made; None if the line is shorter than that."""
    line = span.source.line(span.line)
    return line[span.column - 1 : span.end_column - 1] if span.end_column - 1 <= len(line) else None
