"""One function for each kind of reader, to escape the characters that are special to it.

Names of files, keys and values may hold anything. A control character, a line break, or a character that turns the
direction of writing is shown as one replacement character, in every form.
"""

from __future__ import annotations

import json as json_
import re
from typing import Any

#: Commands of CI systems that stand anywhere in a line: `##[group]` of GitHub's runner, `##vso[…]` of Azure's.
_RUNNER = re.compile(r"##(?=(?:vso)?\[)", re.I)
#: Commands of GitHub's runner that begin a line.
_COMMAND = re.compile(r"^(\s*):(?=:)", re.M)
#: Characters that Markdown reads as markup, and the `|` that ends a cell of a table.
_MARKDOWN = re.compile(r"[\\`*_\[\]<>#~|]")
#: Texts that inline code cannot hold, or not in a table.
_NO_CODE = re.compile(r"[`|\n]|\\$|^ | $|^$")


def visible(text: str) -> str:
    """Return a line of the same length for a terminal or a log, without control characters or commands.

    A line that begins with `::`, and `##[` anywhere, would command GitHub's runner, which reads all that a step prints.
    """
    text = "".join(
        "→" if char == "\t" else char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text
    )
    if text.lstrip().startswith("::"):
        text = text.replace("::", "\N{FULLWIDTH COLON}:", 1)
    return _RUNNER.sub("#\N{FULLWIDTH NUMBER SIGN}", text)


def lines(text: str) -> str:
    """Make a text of several lines visible; only our own line breaks may be in it."""
    return "\n".join(visible(line) for line in text.split("\n"))


def code(text: str) -> str:
    """Return inline code in Markdown that the text cannot break out of, also in a table; else words without markup."""
    text = visible(text)
    return _plain(text) if _NO_CODE.search(text) else f"`{text}`"


def escape(text: str) -> str:
    """Escape a text for Markdown, except for code in backticks, which our messages have."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a lone backtick is one of the user's
        return _plain(visible(text))
    told = [code(part) if number % 2 else _plain(visible(part)) for number, part in enumerate(parts)]
    # Two codes side by side would be read as one with longer fences.
    return "".join(" " if number and not part and number < len(told) - 1 else part for number, part in enumerate(told))


def _plain(text: str) -> str:
    # A mention of a person or a team would call them; no escape stops that but a character that has no width.
    return _MARKDOWN.sub(lambda match: f"\\{match[0]}", text.replace("&", "&amp;").replace("@", "@\u200b"))


def workflow_data(*parts: str) -> str:
    """Return the data of a GitHub workflow command, with one line for each part.

    As `actions/toolkit`, packages/core/src/command.ts: `%`, CR and LF are escaped.
    """
    text = re.sub(r"[^\r\n]+", lambda match: visible(match[0]), "\n".join(parts))
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def workflow_property(text: str) -> str:
    """Return a property of a workflow command: `:` and `,` are escaped, too."""
    return workflow_data(text).replace(":", "%3A").replace(",", "%2C")


def html_text(text: str) -> str:
    """Return text for a page, not yet escaped: line breaks and tabs stay, other unprintable characters are replaced."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def html(text: str) -> str:
    """Text for a page, escaped."""
    # Imported here: only pages need it.
    from html import escape

    return escape(html_text(text))


def page(text: str) -> str:
    """Return a whole page of HTML or SVG that looks the same, without commands to a CI system that prints it."""
    return _COMMAND.sub(r"\1&#58;", _RUNNER.sub("#&#35;", text))


def json(tree: Any) -> str:
    """Return JSON of the same data that is safe to print: unprintable characters are escaped."""
    text = json_.dumps(tree, indent=2, ensure_ascii=False).replace("##", "#\\u0023")
    return "".join(char if char == "\n" or char.isprintable() else _escaped(char) for char in text) + "\n"


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
