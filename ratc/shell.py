"""Renders the templates. Values reach them finished; a value that a shell will read passes the filter ``sh``."""

from __future__ import annotations

import shlex
from typing import Any

from ratc import resources


def render(template: str, **values: Any) -> str:
    """The text of a template of ``templates/``. An undefined name is a bug and raises ``jinja2.UndefinedError``."""
    # Imported here: only compiling needs it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(resources.folder("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        auto_reload=False,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["comment"] = lambda value: " ".join(str(value).split())
    return environment.get_template(template).render(**values)
