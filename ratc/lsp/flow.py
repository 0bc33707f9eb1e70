"""Where a cursor is within a flow mapping, `training: {epochs: 3, `, which no parser reads yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Lines above the cursor that are read.
_MOST_LINES = 400
#: A key of a block mapping, and the flow collection behind it.
_BEGINS = re.compile(r"""^[ ]*(?:- )?(?P<key>"[^"]*"|'[^']*'|[\w.-]+)\s*:\s+(?=[{\[])""")
#: The line above a text in block style, `description: |`.
_TEXT = re.compile(r"^(?P<indent>[ ]*(?:- )?)[^#]*:\s+[|>][-+0-9]*\s*(?:#.*)?$")
_TOKEN = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*')|(?P<mark>[{}\[\],]|:(?=\s|$)|(?<=["']):)|(?P<comment>(?:^|(?<=\s))#.*)|."""
)


@dataclass(eq=False)
class _Level:
    """An open bracket: its kind, the key whose value is being written, the keys so far, and the text since the last."""

    bracket: str
    key: str | None = None
    keys: set[str] = field(default_factory=set)
    text: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A cursor in a flow mapping.

    ``line`` is the index of the line of a block mapping that it begins in, ``above`` the keys from that line's on,
    ``key`` the one whose value follows, None if a key does, and ``keys`` those of the mapping, before and behind.
    """

    line: int
    above: tuple[str, ...]
    key: str | None
    keys: frozenset[str]


def place(lines: Sequence[str], behind: Sequence[str] = ()) -> Place | None:
    """Return the place of the cursor at the end of ``lines``; None if that is not directly in a flow mapping.

    ``behind`` are the rest of its line and the lines that follow.
    """
    levels: list[_Level] = []
    began, name, text = 0, "", -1
    for number in range(max(0, len(lines) - _MOST_LINES), len(lines)):
        start = 0
        if not levels:
            line = lines[number]
            if (text >= 0 and len(line) - len(line.lstrip()) > text) or not line.strip():
                continue  # a line of a text
            within = _TEXT.match(line)
            text = len(within["indent"]) if within is not None else -1
            match = _BEGINS.match(line)
            if match is None:
                continue
            began, name, start = number, match["key"].strip("\"'"), match.end()
        for token in _TOKEN.finditer(lines[number], start):
            _take(levels, token)
            if not levels:
                break
    if not levels or any(level.bracket == "[" for level in levels) or levels[-1].text[:1] in ("'", '"'):
        return None
    above, here = (name, *(level.key or "" for level in levels[:-1])), levels[-1]
    key = here.key
    for token in (token for line in behind[:_MOST_LINES] for token in _TOKEN.finditer(line)):
        _take(levels, token)
        if here not in levels:
            break
    return Place(began, above, key, frozenset(here.keys))


def _take(levels: list[_Level], token: re.Match[str]) -> None:
    mark = token["mark"]
    if mark in ("{", "["):
        levels.append(_Level(mark))
    elif mark in ("}", "]"):
        levels.pop()
    elif mark == ",":
        levels[-1].key, levels[-1].text = None, ""
    elif mark == ":" and levels[-1].bracket == "{" and levels[-1].key is None:
        levels[-1].key, levels[-1].text = levels[-1].text.strip().strip("\"'"), ""
        levels[-1].keys.add(levels[-1].key)
    elif token["comment"] is None:
        levels[-1].text = (levels[-1].text + token[0]).lstrip()
