"""A file that ratc wrote, in pieces for the page: comments, which give reasons, apart from the code."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ratc.secrets import excerpt
from ratc.units import counted

#: Comments that a scheduler reads.
_DIRECTIVE = re.compile(r"#(SBATCH|BSUB)\b")
_KEY = re.compile(r'(\s*(?:- )?)("?[A-Za-z_][\w.-]*"?)(?=:(?:\s|$))')


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a line; ``kind`` is comment, directive, key or empty."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class File:
    """A file with its lines in pieces. ``note`` is the summary that is shown while it is folded."""

    path: str
    note: str
    lines: tuple[tuple[Piece, ...], ...]


def file(path: str, text: str, note: str = "") -> File:
    """A file for the page, without secrets."""
    # Only the ends that editors count: a form feed is part of a line.
    lines = redact_lines(text)
    keyed = path.endswith((".yaml", ".json"))
    many = counted(len(lines), "line")
    return File(path, f"{many}, {note}" if note else many, tuple(_pieces(line, keyed) for line in lines))


def redact_lines(text: str) -> list[str]:
    """Return the lines of a text, with everything that looks like a secret starred out."""
    return excerpt.whole(text.removesuffix("\n")).split("\n")


def _pieces(line: str, keyed: bool) -> tuple[Piece, ...]:
    cut = _comment(line)
    code, comment = line[:cut], line[cut:]
    pieces = []
    key = _KEY.match(code) if keyed else None
    if key:
        pieces = [Piece("", key[1]), Piece("key", key[2]), Piece("", code[key.end() :])]
    elif code:
        pieces = [Piece("", code)]
    if comment:
        pieces.append(Piece("directive" if _DIRECTIVE.match(comment) else "comment", comment))
    return tuple(piece for piece in pieces if piece.text)


def _comment(line: str) -> int:
    """Return the index of a line's comment: a `#` at its start or behind a blank, outside quotes. For colours only."""
    quote = ""
    for index, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (index == 0 or line[index - 1] in " \t"):
            return index
    return len(line)
