"""Writes YAML that YAML 1.1 and 1.2 readers understand alike, one value a line, with a comment if one is given.

PyYAML reads `1e-05` as text and `no` as false; the writer never leaves either to chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/](?:[A-Za-z0-9_./+-]|:(?=[A-Za-z0-9_./+-]))*(?: [A-Za-z0-9_./()+-]+)*")
#: The begin of a command for a CI system that reads a step's output.
_RUNNER = re.compile(r"##(?=(?:vso)?\[)", re.I)
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "~"))


def scalar(value: Any) -> str:
    """One value on one line: null, booleans, numbers, text, and lists or mappings of these in flow style."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(str(key))}: {scalar(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(scalar(item) for item in value) + "]"
    return _text(str(value))


def mapping(
    tree: Mapping[str, Any], comments: Mapping[str, str] | None = None, prefix: str = "", depth: int = 0
) -> str:
    """Nested mappings in block style; ``comments`` are by dotted path and stand behind the value."""
    lines = []
    comments = comments or {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        head = f"{'  ' * depth}{_text(str(key))}:"
        if isinstance(value, Mapping) and value:
            lines.append(head + "\n" + mapping(value, comments, f"{path}.", depth + 1).rstrip("\n"))
        else:
            comment = comments.get(path)
            lines.append(f"{head} {scalar(value)}" + (f"  # {_one_line(comment)}" if comment else ""))
    return "\n".join(lines) + "\n" if lines else ""


def comment(text: str, indent: int = 1) -> str:
    """Return a line that is a comment, for any text."""
    return f"#{' ' * indent}{_one_line(text)}\n"


def _number(value: float) -> str:
    text = repr(value)
    if "e" in text:
        mantissa, _, exponent = text.partition("e")
        mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
        sign = exponent[0] if exponent[0] in "+-" else "+"
        return f"{mantissa}e{sign}{exponent.lstrip('+-')}"
    return text


def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return '"' + _RUNNER.sub(r"#\\x23", "".join(_escaped(char) for char in value)) + '"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _one_line(text: str) -> str:
    line = re.sub(r"\s*[\n\r\t]\s*", " ", text).strip()
    return _RUNNER.sub(r"#\\x23", "".join(char if char in '"\\' else _escaped(char) for char in line))
