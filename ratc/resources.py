"""Finds the schemas, the templates and the texts: inside the package in a wheel, beside it in a checkout."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def folder(name: str) -> str:
    """The absolute path of a resource folder (``schemas``, ``templates``, ``codes``, ``facts`` or ``spec``)."""
    inside = os.path.join(_PACKAGE, name)
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(_PACKAGE), name)


def read(name: str, file: str) -> bytes:
    """The bytes of one resource file."""
    with open(os.path.join(folder(name), file), "rb") as handle:
        return handle.read()


@cache
def schema(name: str) -> dict[str, Any]:
    """The parsed JSON Schema ``schemas/<name>.schema.json``."""
    loaded: dict[str, Any] = json.loads(read("schemas", f"{name}.schema.json"))
    return loaded


def template_environment(autoescape: bool, finalize: Any = None) -> Environment:
    """A Jinja environment of the templates: a comment begins with ``{%#``, because ``${#list}`` is bash's."""
    # Imported here: only writing needs it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        comment_start_string="{%#",
        comment_end_string="#%}",
        loader=FileSystemLoader(folder("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
        finalize=finalize,
        auto_reload=False,
    )
