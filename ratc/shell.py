"""Renders the templates. Values reach them finished; a value that a shell will read passes the filter ``sh``."""

from __future__ import annotations

import shlex
from functools import cache
from typing import TYPE_CHECKING, Any

from ratc import resources

if TYPE_CHECKING:
    from jinja2 import Environment


def quote(word: str) -> str:
    """Quote a word as one argument on one line; with unprintable characters it becomes bash's ``$'…'``."""
    if word.isprintable():
        return shlex.quote(word)
    escapes = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "'": "\\'", "\\": "\\\\"}
    hexadecimal = {char: "".join(f"\\x{byte:02x}" for byte in char.encode()) for char in word if not char.isprintable()}
    return "$'" + "".join(escapes.get(char, hexadecimal.get(char, char)) for char in word) + "'"


def path(word: str) -> str:
    """Return the path as one argument; a leading `~/` is the home of the user that runs the script, as in a shell."""
    if word == "~" or word.startswith("~/"):
        return '"$HOME"' + (quote(word[1:]) if len(word) > 2 else "")
    return quote(word)


def line(text: object) -> str:
    """The text on one line, for a comment."""
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    """Return the text with a question mark for each unprintable character, line breaks included.

    bsub reads directives anywhere in a script, sbatch up to the first command.
    """
    return "".join(char if char.isprintable() else "?" for char in text)


@cache
def environment() -> Environment:
    """Return the Jinja environment of scripts, which has their filters."""
    made = resources.template_environment(autoescape=False)
    made.filters["path"] = path
    made.filters["sh"] = lambda value: quote(str(value))
    made.filters["comment"] = line
    return made


def render(template: str, **values: Any) -> str:
    """The text of a template of ``templates/``. An undefined name is a bug and raises ``jinja2.UndefinedError``."""
    return environment().get_template(template).render(**values)
