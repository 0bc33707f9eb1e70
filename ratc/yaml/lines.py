"""The line ends of YAML: beside those of other files some characters of Unicode."""

from __future__ import annotations

import re

END = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


def unified(text: str) -> str:
    """Return the text with `\\n` for each line end."""
    return END.sub("\n", text)


def starts(text: str, end: re.Pattern[str] = END) -> list[int]:
    """Return the index of each line's first character."""
    return [0, *(match.end() for match in end.finditer(text))]
