"""Places in a document: lines and columns from 1 as in findings, and positions as a client of the protocol counts them.

The protocol knows fewer line ends than YAML, and counts columns in the units of the client's encoding.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache

from lsprotocol import types
from pygls.workspace import TextDocument

from ratc.diagnostics import Span
from ratc.yaml import lines

#: The line ends of the protocol.
_END = re.compile("\r\n|[\r\n]")


@lru_cache(maxsize=4)
def _starts(text: str) -> tuple[list[int], list[int]]:
    """The first indices of lines: as YAML counts them, and as the protocol does."""
    return lines.starts(text), lines.starts(text, _END)


def _mark(text: str) -> int:
    """The characters of a byte order mark, which findings do not count."""
    return int(text.startswith("\ufeff"))


def from_client(document: TextDocument, position: types.Position) -> tuple[int, int]:
    """Return the line and the column of a client's position."""
    text = document.source
    ours, theirs = _starts(text)
    if position.line >= len(theirs):  # behind the last line end
        return len(ours) + 1, 1
    line = text[theirs[position.line] : (*theirs, len(text))[position.line + 1]]
    wanted = types.Position(0, position.character)
    index = theirs[position.line] + document.position_codec.position_from_client_units([line], wanted).character
    at = bisect_right(ours, index) - 1
    return at + 1, max(1, index - ours[at] + 1 - (_mark(text) if at == 0 else 0))


def to_client(document: TextDocument, span: Span) -> types.Range:
    """Return a span's range as the client counts."""
    return types.Range(_to(document, span.line, span.column), _to(document, span.end_line, span.end_column))


def _to(document: TextDocument, line: int, column: int) -> types.Position:
    text = document.source
    ours, theirs = _starts(text)
    before = _mark(text) if line == 1 else 0
    index = min(ours[line - 1] + before + column - 1, len(text)) if line <= len(ours) else len(text)
    at = bisect_right(theirs, index) - 1
    return types.Position(at, document.position_codec.client_num_units(text[theirs[at] : index]))
